import logging
import types

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from enn import data_noise, datasets
from enn.data_noise import bootstrapping
from enn.networks import indexers
from tests.data_noise import stubs
from tests.support import golden

ALL = ["poisson", "exponential", "bernoulli", "uniform"]
ENSEMBLE = indexers.EnsembleIndexer(10)
GAUSSIAN = indexers.GaussianIndexer(3)
SCALED = indexers.ScaledGaussianIndexer(3)
UNIT = indexers.GaussianWithUnitIndexer(4)
PRNG = indexers.PrngIndexer()
PAIRS = [
    *[(indexer, name) for indexer in (ENSEMBLE, PRNG) for name in ALL],
    *[(indexer, name) for indexer in (GAUSSIAN, SCALED) for name in ALL[1:3]],
    (UNIT, "bernoulli"),
]


def _weights(indexer, distribution, index=None, data_index=stubs.IDS, **kwargs):
    boot_fn = bootstrapping.make_boot_fn(stubs.network(indexer), distribution, **kwargs)
    if index is None:
        index = indexer(jax.random.PRNGKey(7))
    return boot_fn(data_index, index)


@pytest.mark.slow
def test_golden_weights():
    batch = golden.batch("classification")

    def weights(indexer, index, *args):
        noise = data_noise.BootstrapNoise(stubs.network(indexer), *args)
        return noise(batch, index).weights

    @jax.jit
    def tree(member, key):
        ensemble = indexers.EnsembleIndexer(4)
        tree = {
            f"ensemble_{name}": weights(ensemble, member, name, 4)
            for name in [*ALL, "none"]
        }
        for name, indexer in [("gauss", GAUSSIAN), ("scaled", SCALED), ("unit", UNIT)]:
            index = indexer(key)
            tree[name] = weights(indexer, index, "bernoulli", 1)
            if name != "unit":
                tree[f"{name}_exp"] = weights(indexer, index, "exponential", 1)
        return tree | {"prng": weights(PRNG, key, "poisson")}

    golden.assert_matches("bootstrap_weights", tree(np.array(2), golden.keys(5)))


@pytest.mark.parametrize(
    ("indexer", "distribution", "index", "weights"),
    [
        (ENSEMBLE, "exponential", None, [0.7523416, 0.9245761, 0.8365338, 0.2549109]),
        (ENSEMBLE, "uniform", None, [1.0574765, 1.2066009, 1.1335809, 0.4500289]),
        (ENSEMBLE, "bernoulli", None, [0, 0, 0, 2]),
        (ENSEMBLE, "poisson", None, [0, 0, 0, 0]),
        (ENSEMBLE, "exponential", 3, [0.3105952, 0.16914359, 0.34923178, 0.31962323]),
        (GAUSSIAN, "exponential", None, [4.7628965, 1.8095917, 1.5738904, 2.321428]),
        (SCALED, "exponential", None, [4.7628965, 1.8095917, 1.5738904, 2.321428]),
        (UNIT, "bernoulli", None, [2, 0, 0, 0]),
        (PRNG, "exponential", None, [1.1211338, 3.673671, 0.36074546, 0.5869124]),
        (PRNG, "poisson", None, [4, 1, 1, 2]),
    ],
)
def test_specified_weights(indexer, distribution, index, weights):
    index = None if index is None else np.array(index)
    actual = _weights(indexer, distribution, index)
    np.testing.assert_allclose(np.ravel(actual), weights, rtol=1e-5)


@pytest.mark.strict
@pytest.mark.parametrize(
    ("indexer", "distribution"),
    [
        (ENSEMBLE, "exponential"),
        (GAUSSIAN, "exponential"),
        (SCALED, "bernoulli"),
        (UNIT, "bernoulli"),
        (PRNG, "uniform"),
    ],
)
@pytest.mark.parametrize(
    ("make_key", "independent_seeds"),
    [(jax.random.key, True), (jax.random.PRNGKey, False)],
)
def test_works_compiled_over_many_indices(
    indexer, distribution, make_key, independent_seeds
):
    boot_fn = bootstrapping.make_boot_fn(
        stubs.network(indexer), distribution, 3, independent_seeds
    )
    zs = jax.vmap(indexer)(jax.random.split(make_key(0), 2))
    many = jax.jit(jax.vmap(boot_fn, in_axes=(None, 0)))(stubs.IDS, zs)
    assert many.shape == (2, 4, 1)
    for index, weights in zip(zs, many, strict=True):
        one = boot_fn(stubs.IDS, index)
        np.testing.assert_allclose(one, weights, rtol=1e-5)


@pytest.mark.parametrize(("indexer", "distribution"), PAIRS)
def test_dtypes(indexer, distribution):
    boot_fn = bootstrapping.make_boot_fn(stubs.network(indexer), distribution)
    weights = jax.eval_shape(boot_fn, stubs.IDS, indexer(jax.random.PRNGKey(7)))
    vector_index = isinstance(indexer, type(GAUSSIAN) | type(SCALED) | type(UNIT))
    counts = distribution in ("poisson", "bernoulli") and not vector_index
    assert weights.dtype == (jnp.int32 if counts else jnp.float32)


@pytest.mark.parametrize(
    ("indexer", "distribution", "independent_seeds"),
    [
        *[(*pair, False) for pair in PAIRS if pair[0] not in (UNIT, PRNG)],
        (PRNG, "exponential", False),
        (ENSEMBLE, "exponential", True),
        (PRNG, "exponential", True),
    ],
)
def test_weights_have_mean_one_over_rows_and_indices(
    indexer, distribution, independent_seeds
):
    boot_fn = bootstrapping.make_boot_fn(
        stubs.network(indexer), distribution, independent_seeds=independent_seeds
    )
    weights = stubs.over_indices(boot_fn, indexer)
    assert abs(weights.mean() - 1) < 0.1
    assert weights.min() >= 0
    if distribution == "bernoulli":
        assert set(np.unique(weights)) == {0, 2}


def test_exponential_weights_of_scaled_indices_have_mean_scale_squared():
    """Numbers of the original are kept."""
    indexer = indexers.ScaledGaussianIndexer(3, index_scale=3.0)
    boot_fn = bootstrapping.make_boot_fn(stubs.network(indexer), "exponential")
    weights = stubs.over_indices(boot_fn, indexer, 400)
    assert abs(weights.mean() - 9) < 0.9


def test_an_ensemble_takes_one_member_for_each_row():
    members = np.array([4, 1, 1, 0])
    weights = np.asarray(_weights(ENSEMBLE, "exponential", members))
    for row, member in enumerate(members):
        one = np.asarray(_weights(ENSEMBLE, "exponential", member))
        np.testing.assert_array_equal(weights[row], one[row])


@pytest.mark.parametrize(("indexer", "distribution"), PAIRS)
def test_weights_go_with_the_row_id(indexer, distribution):
    """For a PRNG index, only with independent seeds; by default with the position."""
    forward, backward = (
        _weights(
            indexer, distribution, data_index=ids, independent_seeds=indexer is PRNG
        )
        for ids in (stubs.IDS, stubs.IDS[::-1])
    )
    np.testing.assert_array_equal(forward, np.asarray(backward)[::-1])


def test_by_default_weights_of_a_prng_index_go_with_the_position():
    one = _weights(PRNG, "exponential", seed=0)
    other = _weights(PRNG, "exponential", seed=5, data_index=stubs.IDS[::-1])
    np.testing.assert_array_equal(one, other)


def test_by_default_only_the_sum_of_seed_and_row_id_counts():
    one = _weights(ENSEMBLE, "exponential", seed=1, data_index=stubs.IDS)
    other = _weights(ENSEMBLE, "exponential", seed=0, data_index=stubs.IDS + 1)
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("indexer", "distribution"),
    [(ENSEMBLE, "exponential"), (GAUSSIAN, "exponential"), (PRNG, "exponential")],
)
@pytest.mark.parametrize("seed", [1, -1])
def test_independent_seeds_do_not_collide(indexer, distribution, seed):
    ids = np.arange(1000)[:, None]
    one, other = (
        _weights(
            indexer,
            distribution,
            seed=s,
            data_index=ids + 2 - s,
            independent_seeds=True,
        )
        for s in (0, seed)
    )
    assert abs(stubs.correlation(one, other)) < 0.1


@pytest.mark.parametrize("distribution", [None, "none"])
@pytest.mark.parametrize(
    "indexer", [ENSEMBLE, UNIT, PRNG, indexers.DirichletIndexer(np.ones(2))]
)
def test_no_bootstrap_for_any_indexer(indexer, distribution):
    weights = _weights(indexer, distribution, index=np.ones(2))
    assert weights.dtype == jnp.int32
    np.testing.assert_array_equal(weights, np.ones([4, 1]))


def test_weights_are_replaced_and_the_rest_is_kept():
    data = datasets.ArrayBatch(
        x=np.ones([4, 2]),
        y=np.ones([4, 1]),
        data_index=stubs.IDS,
        weights=np.full([4, 1], 100.0),
        extra={"a": np.ones(4)},
    )
    noise = data_noise.BootstrapNoise(stubs.network(ENSEMBLE), "exponential")
    noisy = noise(data, np.array(3))
    wanted = _weights(ENSEMBLE, "exponential", np.array(3))
    chex.assert_trees_all_equal(noisy, data.replace(weights=wanted))


def test_wrapped_indexers_are_recognised():
    wrapped = types.SimpleNamespace(indexer=ENSEMBLE)
    np.testing.assert_array_equal(
        _weights(wrapped, "uniform", np.array(2)),
        _weights(ENSEMBLE, "uniform", np.array(2)),
    )


@pytest.mark.parametrize(
    ("indexer", "distribution", "accepted"),
    [
        (
            ENSEMBLE,
            "normal",
            "'poisson', 'exponential', 'bernoulli', 'uniform', 'none'",
        ),
        (GAUSSIAN, "uniform", "'bernoulli', 'exponential', 'none'; got 'uniform'"),
        (SCALED, "poisson", "ScaledGaussianIndexer must be one of 'bernoulli'"),
        (UNIT, "exponential", "'bernoulli', 'none'; got 'exponential'"),
        (PRNG, "cauchy", "'poisson', 'exponential', 'bernoulli', 'uniform', 'none'"),
        (indexers.DirichletIndexer(np.ones(2)), "bernoulli", "Dirichlet"),
    ],
)
def test_unknown_distributions_list_the_accepted_ones(indexer, distribution, accepted):
    with pytest.raises(ValueError, match=accepted):
        data_noise.BootstrapNoise(stubs.network(indexer), distribution)


def test_what_is_no_network_is_an_error():
    with pytest.raises(ValueError, match=r"a network with an ensemble, .* got 42"):
        data_noise.BootstrapNoise(42, "bernoulli")


@pytest.mark.parametrize("distribution", ["exponential", None])
@pytest.mark.parametrize("indexer", [ENSEMBLE, PRNG])
def test_missing_row_ids_are_a_clear_error(indexer, distribution):
    data = datasets.ArrayBatch(x=np.ones([4, 2]), y=np.ones([4, 1]))
    noise = data_noise.BootstrapNoise(stubs.network(indexer), distribution)
    with pytest.raises(ValueError, match="data_index is missing"):
        noise(data, indexer(jax.random.key(0)))


def test_row_ids_may_come_without_their_second_axis():
    ids = np.array([3, 1, 4, 1])
    np.testing.assert_array_equal(
        _weights(ENSEMBLE, "uniform", data_index=ids),
        _weights(ENSEMBLE, "uniform", data_index=ids[:, None]),
    )


@pytest.mark.parametrize("shape", [(4, 1, 1), (4, 2), ()])
def test_row_ids_of_another_shape_are_errors(shape):
    with pytest.raises(ValueError, match=r"data_index must have shape \[batch, 1\]"):
        _weights(ENSEMBLE, "uniform", data_index=np.ones(shape, int))


@pytest.mark.parametrize("index", [3, np.arange(3), np.zeros([4, 1], int)])
def test_wrong_ensemble_indices_are_errors(index):
    with pytest.raises(ValueError, match="index of an ensemble"):
        _weights(ENSEMBLE, "uniform", index)


def test_wrong_vector_indices_are_errors():
    with pytest.raises(ValueError, match=r"index must have shape \[index_dim\]"):
        _weights(GAUSSIAN, "bernoulli", np.ones(4))


def test_weight_function_is_built_and_warned_about_once(caplog):
    data = datasets.ArrayBatch(
        x=np.ones([4, 2]), y=np.ones([4, 1]), data_index=stubs.IDS
    )
    with caplog.at_level(logging.WARNING):
        noise = data_noise.BootstrapNoise(stubs.network(UNIT), "bernoulli")
        for _ in range(3):
            noise(data, UNIT(jax.random.key(0)))
    assert [record.message[:28] for record in caplog.records] == [
        "The unit component of a Gaus"
    ]


def test_noise_is_a_hashable_value():
    enn = stubs.network(ENSEMBLE)
    one, same, other = (
        data_noise.BootstrapNoise(enn, "uniform", seed) for seed in (0, 0, 1)
    )
    assert one == same != other
    assert len({one, same, other}) == 2


@pytest.mark.parametrize(
    ("name", "exact"),
    [
        ("poisson", stats.poisson(1)),
        ("exponential", stats.expon()),
        ("bernoulli", stats.rv_discrete(values=([0, 2], [0.5, 0.5]))),
        ("uniform", stats.uniform(0, 2)),
    ],
)
def test_distributions_are_what_their_names_say(name, exact):
    draw, key = bootstrapping.DISTRIBUTIONS[name], jax.random.key(0)
    assert jax.eval_shape(draw, key).shape == ()
    drawn = np.asarray(draw(key, (4000,)))
    for value in (0.5, 1, 1.5, 2.5):
        assert abs(np.mean(drawn <= value) - exact.cdf(value)) < 0.03
    assert abs(drawn.mean() - 1) < 0.06


def test_the_error_names_all_distributions():
    with pytest.raises(ValueError, match="|".join(ALL)) as error:
        _weights(ENSEMBLE, "gamma")
    assert all(name in str(error.value) for name in [*bootstrapping.DISTRIBUTIONS])


@pytest.mark.slow
@pytest.mark.parametrize("distribution", ["exponential", "bernoulli"])
@pytest.mark.parametrize("indexer", [ENSEMBLE, GAUSSIAN, SCALED])
def test_weights_do_not_depend_on_the_batch_or_the_generator(indexer, distribution):
    # Draws of rbg, mapped over keys, depend on all of them: the exponential weight of
    # one row was 1.03, 2.08 or 1.57, depending on its batch.
    index = indexer(jax.random.PRNGKey(7))
    expected = _weights(indexer, distribution, index)
    with jax.default_prng_impl("rbg"):
        for rows in ([2], [2, 0], [1, 3, 2]):
            weights = _weights(indexer, distribution, index, stubs.IDS[rows])
            np.testing.assert_array_equal(weights, expected[np.array(rows)])


@pytest.mark.slow
@pytest.mark.parametrize("independent_seeds", [False, True])
@pytest.mark.parametrize("distribution", ["exponential", "poisson"])
def test_weights_of_a_prng_index_do_not_depend_on_the_other_indices(
    distribution, independent_seeds
):
    # An index of four words: a typed key of rbg.
    keys = jax.random.split(jax.random.key(3, impl="rbg"), 4)

    def weights(key):
        return _weights(PRNG, distribution, key, independent_seeds=independent_seeds)

    together = jax.vmap(weights)(keys)
    alone = np.stack([weights(key) for key in keys])
    np.testing.assert_array_equal(together, alone)
    assert len(np.unique(alone[:, 0])) > 1


@pytest.mark.parametrize(
    "indexer", [indexers.SphereIndexer(3), indexers.CubeIndexer(3)]
)
def test_exponential_weights_of_isotropic_indices(indexer):
    """½ (χ²₁ + χ²₁) is exponential of mean one, and so at every single index."""
    data_index = np.arange(4000)[:, None]
    boot_fn = bootstrapping.make_boot_fn(stubs.network(indexer), "exponential")
    weights = np.asarray(boot_fn(data_index, indexer(jax.random.PRNGKey(7))))
    error = 1 / np.sqrt(4000)
    assert abs(weights.mean() - 1) < 4 * error
    assert abs(np.mean(weights > 1) - np.exp(-1)) < 2 * error
