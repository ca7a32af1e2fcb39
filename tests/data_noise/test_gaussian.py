import chex
import jax
import numpy as np
import pytest

from enn import data_noise, datasets
from enn.data_noise import bootstrapping, gaussian
from enn.networks import indexers
from tests.data_noise import stubs
from tests.support import golden

ENSEMBLE = indexers.EnsembleIndexer(10)
GAUSSIAN = indexers.GaussianIndexer(3)
SCALED = indexers.ScaledGaussianIndexer(3)
UNIT = indexers.GaussianWithUnitIndexer(4)
PRNG = indexers.PrngIndexer()
ALL = [ENSEMBLE, GAUSSIAN, SCALED, UNIT, PRNG]


def _noise(indexer, index=None, data_index=stubs.IDS, noise_std=0.5, **kwargs):
    noise_fn = gaussian.make_noise_fn(stubs.network(indexer), noise_std, **kwargs)
    if index is None:
        index = indexer(jax.random.PRNGKey(7))
    return noise_fn(data_index, index)


def test_golden_targets():
    batch = golden.batch("regression")
    cases = {
        "ensemble": indexers.EnsembleIndexer(4),
        "gauss": GAUSSIAN,
        "scaled": SCALED,
        "unit": UNIT,
    }
    tree = {}
    for name, indexer in cases.items():
        noise = data_noise.GaussianTargetNoise(stubs.network(indexer), 0.7, seed=2)
        tree[name] = noise(batch, indexer(golden.keys(5))).y
    golden.assert_matches("gaussian_target_noise", tree)


@pytest.mark.parametrize(
    ("indexer", "noise"),
    [
        (ENSEMBLE, [0.03604931, 0.13094968, 0.0841044, -0.37768337]),
        (GAUSSIAN, [0.9335057, 0.37295443, 1.0011044, 0.5024438]),
        (SCALED, [1.418055, 0.04791503, 0.88168067, 0.62268335]),
        (UNIT, [1.418055, 0.04791503, 0.88168067, 0.62268335]),
    ],
)
def test_specified_noise(indexer, noise):
    np.testing.assert_allclose(np.ravel(_noise(indexer)), noise, rtol=1e-5)


def test_noise_of_a_prng_index_is_drawn_with_seed_plus_row_id():
    """The original takes no PRNG index."""
    key = jax.random.PRNGKey(7)
    wanted = [
        0.5 * jax.random.normal(jax.random.fold_in(key, row + 2)).item()
        for row in range(4)
    ]
    noise = np.ravel(_noise(PRNG, key, seed=2))
    np.testing.assert_allclose(noise, wanted, rtol=1e-6)


@pytest.mark.strict
@pytest.mark.parametrize("indexer", ALL)
@pytest.mark.parametrize(
    ("make_key", "independent_seeds"),
    [(jax.random.key, True), (jax.random.PRNGKey, False)],
)
def test_works_compiled_over_many_indices(indexer, make_key, independent_seeds):
    noise_fn = gaussian.make_noise_fn(stubs.network(indexer), 0.5, 3, independent_seeds)
    zs = jax.vmap(indexer)(jax.random.split(make_key(0), 2))
    many = jax.jit(jax.vmap(noise_fn, in_axes=(None, 0)))(stubs.IDS, zs)
    assert many.shape == (2, 4, 1)
    for index, noise in zip(zs, many, strict=True):
        np.testing.assert_allclose(noise_fn(stubs.IDS, index), noise, rtol=1e-5)


@pytest.mark.parametrize("indexer", ALL)
def test_noise_has_the_standard_deviation(indexer):
    noise_fn = gaussian.make_noise_fn(stubs.network(indexer), 0.5)
    noise = stubs.over_indices(noise_fn, indexer, 400)
    assert abs(noise.std() - 0.5) < 0.03
    assert abs(noise.mean()) < 0.03


@pytest.mark.parametrize("indexer", ALL)
def test_noise_goes_with_the_row_id(indexer):
    forward, backward = _noise(indexer), _noise(indexer, data_index=stubs.IDS[::-1])
    np.testing.assert_array_equal(forward, np.asarray(backward)[::-1])


def test_an_ensemble_takes_one_member_for_each_row():
    members = np.array([4, 1, 1, 0])
    noise = np.asarray(_noise(ENSEMBLE, members))
    for row, member in enumerate(members):
        one = np.asarray(_noise(ENSEMBLE, member))
        np.testing.assert_array_equal(noise[row], one[row])


@pytest.mark.parametrize("indexer", [ENSEMBLE, GAUSSIAN, PRNG])
@pytest.mark.parametrize("independent_seeds", [False, True])
def test_seeds_collide_unless_independent(indexer, independent_seeds):
    ids = np.arange(1000)[:, None]
    one, other = (
        _noise(
            indexer,
            seed=seed,
            data_index=ids - seed,
            independent_seeds=independent_seeds,
        )
        for seed in (0, 1)
    )
    correlation = stubs.correlation(one, other)
    assert abs(correlation - (not independent_seeds)) < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("independent_seeds", [False, True])
def test_noise_goes_with_bootstrap_weights_unless_independent(independent_seeds):
    ids = np.arange(1000)[:, None]
    noise = _noise(ENSEMBLE, data_index=ids, independent_seeds=independent_seeds)
    boot_fn = bootstrapping.make_boot_fn(
        stubs.network(ENSEMBLE), "uniform", independent_seeds=independent_seeds
    )
    weights = boot_fn(ids, ENSEMBLE(jax.random.PRNGKey(7)))
    correlation = abs(stubs.correlation(noise, weights))
    assert correlation < 0.1 if independent_seeds else correlation > 0.9


def test_noise_is_added_and_the_rest_is_kept():
    data = datasets.ArrayBatch(
        x=np.ones([4, 2]),
        y=np.full([4, 1], 10.0, np.float32),
        data_index=stubs.IDS,
        weights=np.ones([4, 1]),
    )
    noise = data_noise.GaussianTargetNoise(stubs.network(ENSEMBLE), 0.5)
    noisy = noise(data, np.array(3))
    wanted = data.replace(y=10 + np.asarray(_noise(ENSEMBLE, np.array(3))))
    chex.assert_trees_all_close(noisy, wanted)


@pytest.mark.parametrize("shape", [(4,), (4, 2)])
def test_targets_of_another_shape_are_errors(shape):
    data = datasets.ArrayBatch(
        x=np.ones([4, 2]), y=np.ones(shape), data_index=stubs.IDS
    )
    noise = data_noise.GaussianTargetNoise(stubs.network(ENSEMBLE), 0.5)
    with pytest.raises(ValueError, match=r"y must have shape \[batch, 1\]"):
        noise(data, np.array(3))


def test_missing_row_ids_are_a_clear_error():
    data = datasets.ArrayBatch(x=np.ones([4, 2]), y=np.ones([4, 1]))
    noise = data_noise.GaussianTargetNoise(stubs.network(ENSEMBLE), 0.5)
    with pytest.raises(ValueError, match="data_index is missing"):
        noise(data, np.array(3))


@pytest.mark.parametrize("wrong", [-0.5, float("nan")])
def test_noise_must_not_be_negative(wrong):
    with pytest.raises(ValueError, match=f"noise_std must be >= 0, got {wrong}"):
        data_noise.GaussianTargetNoise(stubs.network(ENSEMBLE), wrong)


def test_what_is_no_network_is_an_error():
    with pytest.raises(ValueError, match=r"a network with an ensemble, .* got 42"):
        gaussian.make_noise_fn(42, 0.5)


def test_other_indexers_are_errors():
    with pytest.raises(ValueError, match="Dirichlet"):
        gaussian.make_noise_fn(
            stubs.network(indexers.DirichletIndexer(np.ones(2))), 0.5
        )


@pytest.mark.slow
@pytest.mark.parametrize("indexer", ALL)
def test_noise_does_not_depend_on_the_batch_or_the_generator(indexer):
    # Draws of rbg, mapped over keys, depend on all of them.
    index = indexer(jax.random.PRNGKey(7))
    expected = _noise(indexer, index)
    with jax.default_prng_impl("rbg"):
        if indexer is PRNG:
            index = jax.random.key(7)
            expected = _noise(indexer, index)
        for rows in ([2], [2, 0], [1, 3, 2]):
            noise = _noise(indexer, index, stubs.IDS[rows])
            np.testing.assert_array_equal(noise, expected[np.array(rows)])


@pytest.mark.slow
@pytest.mark.parametrize(
    "indexer",
    [
        indexers.SphereIndexer(3),
        indexers.SignedAxisIndexer(3),
        indexers.CubeIndexer(3),
    ],
)
def test_isotropic_indices_have_the_noise_of_a_gaussian_one(indexer):
    index = indexer(jax.random.PRNGKey(7))
    np.testing.assert_array_equal(_noise(indexer), _noise(GAUSSIAN, index))
