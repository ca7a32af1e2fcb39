import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enn import utils
from enn.networks import indexers
from enn.networks.indexers import make_batch_indexer
from tests.support import golden
from tests.support.fast import key

ALL = {
    "prng": indexers.PrngIndexer(),
    "ensemble": indexers.EnsembleIndexer(7),
    "gaussian": indexers.GaussianIndexer(5),
    "scaled": indexers.ScaledGaussianIndexer(5, 2.0),
    "unit": indexers.GaussianWithUnitIndexer(5),
    "dirichlet": indexers.DirichletIndexer(0.5 * jnp.ones(4)),
}
each_indexer = pytest.mark.parametrize("indexer", ALL.values(), ids=ALL)


def _draws(indexer, num_draws=4000):
    return np.asarray(jax.jit(jax.vmap(indexer))(jax.random.split(key(5), num_draws)))


@pytest.mark.slow
def test_golden_values():
    @jax.jit
    def draw(one_key, batch_key):
        found = {name: indexer(one_key) for name, indexer in ALL.items()}
        for name, indexer in ALL.items():
            found[f"{name}_batch"] = make_batch_indexer(indexer, 6)(batch_key)
        return found

    found = draw(key(3), key(4))
    found["mean_index"] = ALL["unit"].mean_index
    golden.assert_matches("indexers", found)


@pytest.mark.parametrize(
    ("indexer", "index"),
    [
        (indexers.EnsembleIndexer(5), 4),
        (indexers.GaussianIndexer(3), [0.451235, 1.953451, -0.516240]),
        (indexers.ScaledGaussianIndexer(3), [0.260521, 1.127825, -0.298051]),
        (indexers.GaussianWithUnitIndexer(4), [1, 0.260521, 1.127825, -0.298051]),
        (indexers.DirichletIndexer(jnp.ones(3)), [0.665007, 0.155091, 0.179902]),
    ],
)
def test_documented_values(indexer, index):
    np.testing.assert_allclose(indexer(key(7)), index, atol=1e-5)


def test_the_prng_indexer_returns_the_key():
    np.testing.assert_array_equal(ALL["prng"](key(3)), key(3))
    assert ALL["prng"](jax.random.key(3)) == jax.random.key(3)


@pytest.mark.strict
@each_indexer
def test_both_kinds_of_key_give_the_same_index(indexer):
    legacy, typed = indexer(key(3)), indexer(jax.random.key(3))
    if indexer is ALL["prng"]:
        typed = jax.random.key_data(typed)
    np.testing.assert_array_equal(legacy, typed)


@each_indexer
def test_indexers_work_under_jit_and_vmap(indexer):
    keys = jax.random.split(key(0), 3)
    expected = np.stack([indexer(k) for k in keys])
    np.testing.assert_allclose(jax.jit(jax.vmap(indexer))(keys), expected, rtol=1e-6)
    assert expected.dtype == (np.uint32 if indexer is ALL["prng"] else _dtype(indexer))


def _dtype(indexer):
    return np.int32 if indexer is ALL["ensemble"] else np.float32


@each_indexer
def test_indexers_are_static_arguments_of_jit(indexer):
    draw = functools.partial(jax.jit, static_argnums=0)(lambda indexer, k: indexer(k))
    np.testing.assert_allclose(draw(indexer, key(3)), indexer(key(3)), rtol=1e-6)


def test_equal_indexers_share_a_hash():
    makers = [
        lambda: indexers.EnsembleIndexer(3),
        lambda: indexers.GaussianIndexer(3),
        lambda: indexers.ScaledGaussianIndexer(3, 2.0),
        lambda: indexers.GaussianWithUnitIndexer(3),
    ]
    assert len({make() for make in makers for _ in range(2)}) == len(makers)


def test_ensemble_indices_are_uniform_over_the_members():
    counts = np.bincount(_draws(indexers.EnsembleIndexer(4)), minlength=4)
    assert len(counts) == 4
    np.testing.assert_allclose(counts / 4000, 0.25, atol=0.03)


@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_the_expected_square_of_a_scaled_index_is_the_scale_squared(scale):
    draws = _draws(indexers.ScaledGaussianIndexer(6, scale))
    mean = np.mean(np.sum(draws**2, axis=1))
    np.testing.assert_allclose(mean, scale**2, rtol=0.05)


def test_gaussian_indices_are_standard_normal():
    draws = _draws(indexers.GaussianIndexer(3))
    np.testing.assert_allclose(draws.mean(0), 0, atol=0.06)
    np.testing.assert_allclose(np.cov(draws.T), np.eye(3), atol=0.1)


def test_indices_with_a_unit_have_their_mean():
    indexer = indexers.GaussianWithUnitIndexer(4)
    draws = _draws(indexer)
    np.testing.assert_array_equal(draws[:, 0], 1)
    np.testing.assert_array_equal(indexer.mean_index, [1, 0, 0, 0])
    np.testing.assert_allclose(draws.mean(0), indexer.mean_index, atol=0.04)


def test_a_single_entry_with_a_unit_is_the_unit():
    indexer = indexers.GaussianWithUnitIndexer(1)
    for index in (indexer(key(0)), indexer.mean_index):
        np.testing.assert_array_equal(index, [1.0])
        assert index.dtype == jnp.float32


@pytest.mark.strict
@settings(deadline=None, max_examples=20)
@given(st.lists(st.floats(0.1, 10), min_size=3, max_size=3), st.integers(0, 99))
def test_dirichlet_indices_lie_on_the_simplex(alpha, seed):
    index = indexers.DirichletIndexer(alpha)(key(seed))
    assert index.shape == (len(alpha),)
    assert np.all(index >= 0)
    np.testing.assert_allclose(index.sum(), 1, rtol=1e-5)


def test_dirichlet_indices_have_the_mean_of_their_concentration():
    draws = _draws(indexers.DirichletIndexer([1, 2, 5]))
    np.testing.assert_allclose(draws.mean(0), [1 / 8, 2 / 8, 5 / 8], atol=0.02)


@pytest.mark.parametrize("dtype", [np.float64, np.int64, np.float32])
def test_dirichlet_takes_numpy_arrays_of_any_dtype(dtype):
    indexer = indexers.DirichletIndexer(np.ones(3, dtype))
    expected = [0.665007, 0.155091, 0.179902]
    np.testing.assert_allclose(indexer(key(7)), expected, atol=1e-5)


def test_dirichlet_takes_an_array_of_vectors():
    index = indexers.DirichletIndexer(np.ones((2, 3)))(key(0))
    np.testing.assert_allclose(index.sum(axis=-1), [1, 1], rtol=1e-5)


def test_dirichlet_is_made_inside_jit_from_known_and_traced_values():
    @jax.jit
    def draw(k, alpha):
        return indexers.DirichletIndexer([1, 1, 1])(k), indexers.DirichletIndexer(
            alpha
        )(k)

    for index in draw(key(7), jnp.ones(3)):
        np.testing.assert_allclose(index, [0.665007, 0.155091, 0.179902], atol=1e-5)


@pytest.mark.parametrize("alpha", [[], [1.0, 0.0], [-1.0], 2.0, [np.nan], [[]]])
def test_dirichlet_refuses_other_concentrations(alpha):
    with pytest.raises(ValueError, match=r"alpha must be a vector of positive numbers"):
        indexers.DirichletIndexer(alpha)


@pytest.mark.parametrize("size", [0, -3, 1.5, True, None])
@pytest.mark.parametrize(
    ("make", "name"),
    [
        (indexers.EnsembleIndexer, "num_ensemble"),
        (indexers.GaussianIndexer, "index_dim"),
        (indexers.ScaledGaussianIndexer, "index_dim"),
        (indexers.GaussianWithUnitIndexer, "index_dim"),
    ],
)
def test_sizes_below_one_are_refused(make, name, size):
    with pytest.raises(ValueError, match=f"{name} must be an integer >= 1"):
        make(size)


def test_the_first_indices_of_a_batch_do_not_depend_on_how_many_are_drawn():
    few, many = (make_batch_indexer(ALL["gaussian"], n)(key(2)) for n in (2, 5))
    np.testing.assert_array_equal(few, many[:2])


def test_a_batch_of_indices_is_drawn_with_folded_in_keys():
    indices = make_batch_indexer(ALL["unit"], 3)(key(2))
    expected = [ALL["unit"](jax.random.fold_in(key(2), i)) for i in range(3)]
    np.testing.assert_allclose(indices, np.stack(expected), rtol=1e-6)


def test_a_batch_of_indices_takes_typed_keys_and_needs_a_size():
    batch = make_batch_indexer(ALL["prng"], 3)(jax.random.key(2))
    assert batch.shape == (3,)
    with pytest.raises(ValueError, match="batch_size must be an integer >= 1, got 0"):
        make_batch_indexer(ALL["prng"], 0)
    assert utils.make_batch_indexer is make_batch_indexer


ISOTROPIC = [
    indexers.GaussianIndexer(3),
    indexers.SphereIndexer(3),
    indexers.SignedAxisIndexer(3),
    indexers.CubeIndexer(3),
]


@pytest.mark.parametrize("indexer", ISOTROPIC)
def test_isotropic_indices_have_the_second_moment_of_the_identity(indexer):
    draws = _draws(indexer)
    products = draws[:, :, None] * draws[:, None, :]
    errors = products.std(axis=0) / np.sqrt(len(draws))
    assert (np.abs(products.mean(axis=0) - np.eye(3)) <= 4 * errors + 1e-5).all()
    if not isinstance(indexer, indexers.GaussianIndexer):
        np.testing.assert_allclose(np.square(draws).sum(axis=1), 3.0, rtol=1e-5)


def test_formulas_of_isotropic_indices():
    one_key = key(7)
    gaussian = jax.random.normal(one_key, [4])
    expected = 2 * gaussian / np.linalg.norm(gaussian)
    np.testing.assert_allclose(indexers.SphereIndexer(4)(one_key), expected, rtol=1e-6)
    cube = indexers.CubeIndexer(4)(one_key)
    np.testing.assert_array_equal(cube, jax.random.rademacher(one_key, [4]))
    axes = indexers.SignedAxisIndexer(4)
    number = int(jax.random.randint(one_key, [], 0, 8))
    np.testing.assert_array_equal(axes(one_key), axes.all_indices()[number])
    expected = 2 * np.concatenate([np.eye(4), -np.eye(4)])
    np.testing.assert_array_equal(axes.all_indices(), expected)
