import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.cluster
from hypothesis import given, settings
from hypothesis import strategies as st

from enn import extra
from enn.extra import kmeans
from tests.support import golden

# Two pairs with means 1 and 12, and standard deviations 1 and 2.
PAIRS = np.array([[0.0], [2.0], [10.0], [14.0]], np.float32)
KEY = jax.random.PRNGKey(3)


def _inertia(clusters):
    return np.vdot(clusters.std_distance, clusters.counts_per_centroid)


def _state(*centroids):
    return kmeans.KMeansState(np.array(centroids, np.float32), 0)


def test_golden_clusters():
    clusters = extra.KMeansCluster(3, 50, KEY).fit(golden.normal(40, 2, seed=40))
    golden.assert_matches(
        "kmeans",
        {
            "centroids": clusters.centroids,
            "counts": clusters.counts_per_centroid,
            "std": clusters.std_distance,
            "classes": clusters.classes,
        },
    )


@pytest.mark.strict
def test_documented_clusters():
    x = jax.random.normal(jax.random.PRNGKey(4), [12, 2], jnp.float32)
    clusters = extra.KMeansCluster(3, 20, jax.random.PRNGKey(5)).fit(x)
    wanted = [[-0.03887244, 1.3089569], [-0.5969862, -0.37958091]]
    wanted += [[1.1393148, 0.23003815]]
    np.testing.assert_allclose(clusters.centroids, wanted, rtol=1e-6)
    np.testing.assert_array_equal(clusters.counts_per_centroid, [3, 7, 2])
    assert [leaf.dtype for leaf in clusters] == [jnp.float32] * 3 + [jnp.int32]


@pytest.mark.slow
@pytest.mark.parametrize("init", ["random", "k-means++"])
def test_inertia_and_classes_equal_those_of_scikit_learn(init):
    x = np.random.default_rng(7).normal(size=(60, 3)).astype(np.float32)
    num_iterations = 100
    start = extra.KMeansCluster(5, 0, KEY, init).fit(x).centroids
    clusters = extra.KMeansCluster(5, num_iterations, KEY, init).fit(x)
    reference = sklearn.cluster.KMeans(
        5, init=np.array(start), n_init=1, max_iter=num_iterations, tol=0
    ).fit(x)
    np.testing.assert_array_equal(clusters.classes, reference.labels_)
    np.testing.assert_allclose(_inertia(clusters), reference.inertia_, rtol=1e-5)
    np.testing.assert_allclose(clusters.centroids, reference.cluster_centers_, 1e-4)


@pytest.mark.strict
@given(seed=st.integers(0, 2**31), num_centroids=st.sampled_from([1, 3]))
@settings(deadline=None, max_examples=10)
def test_an_iteration_never_raises_inertia_and_output_is_consistent(
    seed, num_centroids
):
    x = np.random.default_rng(seed).normal(size=(12, 2)).astype(np.float32)
    state = kmeans.KMeansState(x[:num_centroids], 0)
    inertia = np.inf
    for _ in range(3):
        clusters = kmeans.compute_output(x, state)
        previous, inertia = inertia, _inertia(clusters)
        assert inertia <= previous * (1 + 1e-5)
        counts = np.bincount(clusters.classes, minlength=num_centroids)
        np.testing.assert_array_equal(clusters.counts_per_centroid, counts)
        state = kmeans.kmeans_iteration(x, state)
    assert state.iter == 3


@pytest.mark.strict
def test_std_distance_is_a_mean_square_and_rms_distance_its_root():
    clusters = kmeans.compute_output(PAIRS, _state([1.0], [12.0]))
    np.testing.assert_allclose(clusters.std_distance, [1, 4])
    np.testing.assert_allclose(clusters.rms_distance, [1, 2])


@pytest.mark.strict
@pytest.mark.parametrize("init", ["random", "k-means++"])
def test_centroids_without_rows_stay(init):
    # They jumped to the origin, far from all data.
    x = np.full([4, 2], 7.0)
    clusters = extra.KMeansCluster(3, 5, KEY, init).fit(x)
    np.testing.assert_array_equal(clusters.centroids, np.full([3, 2], 7.0))
    np.testing.assert_array_equal(clusters.counts_per_centroid, [4, 0, 0])
    np.testing.assert_array_equal(clusters.std_distance, [0, 0, 0])


@pytest.mark.parametrize("convert", [np.asarray, jnp.asarray])
def test_integers_cluster_as_the_floats_they_equal(convert):
    # The type changed in the loop, which failed.
    cluster = extra.KMeansCluster(2, 5, KEY)
    clusters = cluster.fit(convert([[0], [2], [10], [14]]))
    jax.tree.map(np.testing.assert_array_equal, clusters, cluster.fit(PAIRS))
    assert clusters.centroids.dtype == PAIRS.dtype


def test_helpers_take_numpy_and_any_object_with_the_attributes():
    state = types.SimpleNamespace(centroids=np.array([[3.0], [11.0]]), iter=4)
    moved = kmeans.kmeans_iteration(np.array([[0], [2], [10], [14]]), state)
    np.testing.assert_allclose(moved.centroids, [[1], [12]])
    assert moved.iter == 5
    clusters = kmeans.compute_output(np.array([[0], [2], [10], [14]]), moved)
    np.testing.assert_allclose(clusters.std_distance, [1, 4])


@pytest.mark.strict
def test_distances_are_euclidean_and_ties_go_to_the_lowest_class():
    centroids = np.array([[3.0, 4.0], [0.0, 5.0], [0.0, 1.0]])
    x = np.array([[0.0, 0.0], [6.0, 8.0], [1.5, 4.5]])
    classes, distances = kmeans.get_classes_and_distances(x, centroids)
    np.testing.assert_allclose(np.asarray(distances)[0], [5, 5, 1])
    assert distances.shape == (3, 3)
    np.testing.assert_array_equal(classes, [2, 0, 0])


def test_all_differences_of_rows_and_centroids_are_never_in_memory():
    x, centroids = np.ones([64, 32]), np.ones([16, 32])
    compiled = kmeans.get_classes_and_distances.lower(x, centroids).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * 64 * 16 * 32 / 4


def test_iterations_end_when_the_centroids_rest(monkeypatch):
    calls, iterate = [], kmeans.kmeans_iteration

    def counted(x, state):
        jax.debug.callback(calls.append, state.iter)
        return iterate(x, state)

    monkeypatch.setattr(kmeans, "kmeans_iteration", counted)
    clusters = extra.KMeansCluster(2, 500, KEY).fit(PAIRS)
    jax.effects_barrier()
    np.testing.assert_allclose(sorted(np.ravel(clusters.centroids)), [1, 12])
    assert 2 <= len(calls) <= 4


@pytest.mark.slow
@pytest.mark.strict
@pytest.mark.parametrize("init", ["random", "k-means++"])
def test_fits_under_jit_vmap_and_grad_with_a_typed_key(init):
    cluster = extra.KMeansCluster(2, 10, jax.random.key(0), init)

    def total(x):
        clusters = cluster.fit(x)
        return clusters.centroids.sum(), clusters.centroids

    @jax.jit
    def run(x):
        grads, centroids = jax.grad(total, has_aux=True)(x)
        return jax.vmap(cluster.fit)(jnp.stack([x, 2 * x])), grads, centroids

    batched, grads, centroids = run(PAIRS)
    np.testing.assert_allclose(batched.centroids, [centroids, 2 * centroids])
    # A centroid is the mean of two rows.
    np.testing.assert_allclose(grads, np.full([4, 1], 0.5))


def _first_two(x, num_keys):
    @jax.jit
    @jax.vmap
    def draw(key):
        clusters = extra.KMeansCluster(2, 0, key, "k-means++").fit(x)
        return clusters.centroids[:, 0]

    return np.asarray(draw(jax.random.split(KEY, num_keys)))


def test_first_centroids_of_kmeans_plus_plus_have_their_distribution():
    x = np.array([0.0, 1.0, 3.0])
    drawn = _first_two(x[:, None], 1000)
    for first in x:
        for second in x:
            frequency = np.mean((drawn == [first, second]).all(axis=1))
            chance = (second - first) ** 2 / np.sum((x - first) ** 2) / 3
            assert abs(frequency - chance) < 4 * np.sqrt(chance / 1000) + 1e-9


def test_random_first_centroids_are_the_documented_rows():
    x = np.random.default_rng(1).normal(size=(12, 2)).astype(np.float32)
    rows = jax.random.choice(KEY, 12, [3], replace=False)
    clusters = extra.KMeansCluster(3, 0, KEY).fit(x)
    np.testing.assert_array_equal(clusters.centroids, x[rows])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 5, KEY), "num_centroids must be an integer >= 1, got 0"),
        ((2, -1, KEY), "num_iterations must be an integer >= 0, got -1"),
        ((2, 1.5, KEY), "num_iterations must be an integer >= 0, got 1.5"),
        ((2, 5, KEY, "++"), "init must be one of 'random', 'k-means.*got '.."),
    ],
)
def test_wrong_settings_are_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        extra.KMeansCluster(*arguments)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.ones(5), r"x must have shape \[num_data, dim\], got \[5\]"),
        (np.ones([1, 2]), "at least num_centroids=2 rows, got 1"),
        (np.ones([0, 2]), "x must have at least one row"),
    ],
)
@pytest.mark.parametrize("init", ["random", "k-means++"])
def test_wrong_data_are_errors(x, message, init):
    with pytest.raises(ValueError, match=message):
        extra.KMeansCluster(2, 5, KEY, init).fit(x)
