"""Laplace approximations of all weights: closed forms, cost, errors."""

from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laplax.curv import ggn

from enn import networks, posteriors
from enn.datasets import ArrayBatch
from tests.posteriors.data import D1, D2, TEST_X
from tests.support import cost

TANH_PARAMS = {
    "net": {name: np.float32(v) for name, v in {"a": 1.2, "b": 0.8, "c": -0.3}.items()}
}


def _tanh() -> networks.EnnArray:
    """f = a tanh(b x + c)"""

    def apply(params: Any, inputs: Any, index: Any) -> Any:
        a, b, c = (params["net"][name] for name in "abc")
        return a * jnp.tanh(b * inputs + c)

    no_state = networks.EnnNoState(
        apply, lambda *_: TANH_PARAMS, networks.GaussianIndexer(1)
    )
    return networks.wrap_enn_no_state_as_enn(no_state)


def _fit(**kw: Any) -> posteriors.Posterior:
    kw = {"noise_std": 0.5, **kw}
    return posteriors.fit_linearised_laplace(
        _tanh(), TANH_PARAMS, {}, D1, "gaussian", **kw
    )


def _predict(posterior: posteriors.Posterior, x: Any, index: Any) -> Any:
    out, _ = posterior.enn.apply(posterior.params, posterior.state, x, index)
    return networks.parse_net_output(out)


def _variance(posterior: posteriors.Posterior) -> Any:
    dim = posterior.enn.indexer.index_dim
    mean = _predict(posterior, TEST_X, jnp.zeros(dim))
    at_axes = jax.vmap(lambda z: _predict(posterior, TEST_X, z))(jnp.eye(dim))
    return jnp.sum(jnp.square(at_axes - mean[None]), axis=0)[:, 0]


@pytest.mark.parametrize(
    ("kw", "expected"),
    [
        ({}, [0.1331073, 0.1720710]),
        ({"structure": "diagonal"}, [0.1657299, 0.1017001]),
        ({"structure": "low_rank", "rank": 1}, [0.9741800, 0.3971846]),
        ({"structure": "low_rank", "rank": 3}, [0.1331073, 0.1720710]),
        ({"temperature": 4.0}, [4 * 0.1331073, 4 * 0.1720710]),
    ],
)
def test_variances(kw: dict[str, Any], expected: list[float]) -> None:
    np.testing.assert_allclose(_variance(_fit(**kw)), expected, rtol=1e-5)


def test_the_full_covariance() -> None:
    posterior = _fit()
    values = np.linalg.eigvalsh(posterior.curvature["curvature"])
    np.testing.assert_allclose(values, [0.5504909, 11.6738402, 14.0475608], rtol=1e-5)
    np.testing.assert_allclose(posterior.log_marginal_likelihood, -8.4538713, rtol=1e-6)
    preds = _predict(posterior, TEST_X, np.array([1, -0.5, 0.25]))
    np.testing.assert_allclose(preds, [[0.0645282], [1.6212660]], rtol=1e-5)


def test_low_rank_finds_the_largest_eigenvalues_of_many_blocks() -> None:
    enn = networks.wrap_net_fn_as_enn(lambda x: hk.nets.MLP([8, 1])(x))
    x = np.random.default_rng(0).normal(size=(80, 4)).astype(np.float32)
    params, state = enn.init(jax.random.key(0), x, jax.random.key(0))
    batches = [ArrayBatch(x=part, y=part[:, :1]) for part in np.split(x, 4)]
    full, low_rank, one_block = (
        posteriors.fit_linearised_laplace(
            enn, params, state, data, "gaussian", structure=structure, rank=rank
        ).curvature["curvature"]
        for structure, rank, data in (
            ("full", None, batches),
            ("low_rank", 4, batches),
            ("low_rank", 4, ArrayBatch(x=x, y=x[:, :1])),
        )
    )
    expected = np.linalg.eigvalsh(np.asarray(full, float))[:-5:-1]
    assert expected[3] > 0.01 * expected[0]
    for rows, rtol in ((low_rank, 1e-2), (one_block, 1e-5)):
        rows = np.asarray(rows, float)
        assert len(rows) == 22
        values = np.linalg.eigvalsh(rows @ rows.T)[:-5:-1]
        np.testing.assert_allclose(values, expected, rtol=rtol)


def test_low_rank_takes_the_largest_eigenvalues() -> None:
    posterior = _fit(structure="low_rank", rank=2)
    arrays = posterior.params["linearised_laplace"]
    expected = (1 / (1 + np.array([14.0475608, 11.6738402]))) ** 0.5 - 1
    np.testing.assert_allclose(arrays["shrinkage"], expected, rtol=1e-5)
    assert arrays["vectors"].shape == (3, 2)


def _mlp_fit(**kw: Any) -> tuple[Any, posteriors.Posterior]:
    enn = networks.wrap_net_fn_as_enn(lambda x: hk.nets.MLP([4, 2])(x))
    params, state = jax.jit(enn.init)(jax.random.key(0), D2.x, jax.random.key(0))
    args = (enn, params, state, kw.pop("data", D2), "categorical")
    return params, posteriors.fit_linearised_laplace(*args, **kw)


@pytest.mark.slow
def test_the_curvature_is_the_ggn_of_the_whole_data() -> None:
    params, posterior = _mlp_fit()
    flat, unravel = jax.flatten_util.ravel_pytree(params)

    def logits(flat: Any) -> Any:
        net = hk.without_apply_rng(hk.transform(lambda x: hk.nets.MLP([4, 2])(x)))
        return net.apply(unravel(flat), D2.x)

    def of_logits(logits: Any) -> Any:
        return jnp.sum(jax.nn.logsumexp(logits, axis=1))

    jacobian = jax.jacobian(logits)(flat).reshape(12, -1)
    hessian = jax.hessian(of_logits)(logits(flat)).reshape(12, 12)
    expected = jacobian.T @ hessian @ jacobian
    found = posterior.curvature["curvature"]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    _, diagonal = _mlp_fit(structure="diagonal")
    np.testing.assert_allclose(
        diagonal.curvature["curvature"], np.diag(expected), rtol=1e-4, atol=1e-6
    )


@pytest.mark.slow
@pytest.mark.slow
@pytest.mark.parametrize("likelihood", ["categorical", "gaussian"])
def test_the_curvature_is_that_of_laplax(likelihood: Any) -> None:
    # Their squared error has the Hessian 2, so that 1 / (2 σ²) of it is ours.
    loss, factor = "cross_entropy", 1.0
    kw: dict[str, Any] = {}
    if likelihood == "gaussian":
        loss, factor, kw = "mse", 1 / (2 * 0.3**2), {"noise_std": 0.3}
    x = np.random.default_rng(1).normal(size=(7, 3)).astype(np.float32)
    y: Any = np.array([[0], [1], [2], [1], [0], [2], [2]])
    if likelihood == "gaussian":
        y = np.eye(3, dtype=np.float32)[y[:, 0]]
    net = hk.without_apply_rng(hk.transform(lambda x: hk.nets.MLP([4, 3])(x)))
    params = net.init(jax.random.key(3), x)
    posterior = posteriors.fit_linearised_laplace(
        networks.wrap_transformed_as_enn(net),
        params,
        {},
        ArrayBatch(x=x, y=y),
        likelihood,
        **kw,
    )
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    multiply = ggn.create_ggn_mv_without_data(
        lambda input, params: net.apply(params, input[None])[0], params, loss, factor
    )
    with jax.numpy_rank_promotion("allow"):
        expected = jax.vmap(
            lambda v: jax.flatten_util.ravel_pytree(
                multiply(unravel(v), {"input": jnp.asarray(x), "target": y})
            )[0]
        )(jnp.eye(flat.size))
    found = posterior.curvature["curvature"]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("structure", ["full", "diagonal", "low_rank"])
def test_batches_and_an_earlier_fit_add_up(structure: Any) -> None:
    kw = {"structure": structure, "rank": 6 if structure == "low_rank" else None}
    _, whole = _mlp_fit(**kw)
    rows = [slice(0, 4), slice(4, 6)]
    parts = [ArrayBatch(x=D2.x[i], y=D2.y[i]) for i in rows]
    _, first = _mlp_fit(data=parts[0], **kw)
    _, both = _mlp_fit(data=parts[1:], previous=first, **kw)
    assert both.num_data == 6
    np.testing.assert_allclose(_variance_2d(both), _variance_2d(whole), rtol=1e-4)
    np.testing.assert_allclose(
        both.log_marginal_likelihood, whole.log_marginal_likelihood, rtol=1e-5
    )


def _variance_2d(posterior: posteriors.Posterior) -> Any:
    dim = posterior.enn.indexer.index_dim
    mean = _predict(posterior, D2.x, jnp.zeros(dim))
    at_axes = jax.vmap(lambda z: _predict(posterior, D2.x, z))(jnp.eye(dim))
    return jnp.sum(jnp.square(at_axes - mean[None]), axis=0)


@pytest.mark.parametrize("structure", ["full", "diagonal", "low_rank"])
def test_the_best_prior_precision(structure: Any) -> None:
    kw = {"structure": structure, "rank": 3 if structure == "low_rank" else None}
    best = _fit(**kw, prior_precision="marginal_likelihood").log_marginal_likelihood
    for exponent in (-0.5, 0.0, 0.5):
        other = _fit(**kw, prior_precision=10**exponent).log_marginal_likelihood
        assert best >= other - 1e-5


def test_indices_share_the_forward_pass() -> None:
    enn = networks.wrap_net_fn_as_enn(lambda x: hk.nets.MLP([50, 50, 2])(x))
    x = np.zeros([64, 7], np.float32)
    params, state = jax.jit(enn.init)(jax.random.key(0), x, jax.random.key(0))
    posterior = posteriors.fit_linearised_laplace(
        enn,
        params,
        state,
        ArrayBatch(x=x[:2], y=np.zeros([2, 1], int)),
        "categorical",
        structure="diagonal",
    )

    def at_indices(params: Any, x: Any, indices: Any) -> Any:
        return jax.vmap(lambda z: posterior.enn.apply(params, {}, x, z)[0].train)(
            indices
        )

    indices = jnp.zeros([200, posterior.enn.indexer.index_dim])
    flops = cost.flops(at_indices, posterior.params, x, indices)
    np.testing.assert_allclose(flops, 1.46e8, rtol=0.06)  # 2.18e8 apart.


def test_init_gives_the_fit() -> None:
    posterior = _fit()
    params, state = posterior.enn.init(jax.random.key(0), D1.x, jnp.zeros(3))
    assert state == {}
    jax.tree.map(np.testing.assert_array_equal, params, posterior.params)


@pytest.mark.parametrize(
    ("kw", "message"),
    [
        ({"structure": "joint"}, "must be one of 'full', 'diagonal', 'low_rank'"),
        ({"structure": "low_rank"}, "rank must be given for 'low_rank' alone"),
        ({"rank": 1}, "rank must be given for 'low_rank' alone, got 1 for 'full'"),
        ({"structure": "low_rank", "rank": 4}, "at most the 3 weights, got 4"),
        ({"noise_std": 0.0}, "noise_std must be > 0 and finite, got 0"),
    ],
)
def test_errors(kw: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _fit(**kw)


@pytest.mark.slow
def test_a_full_covariance_is_for_small_networks() -> None:
    enn = networks.wrap_net_fn_as_enn(lambda x: hk.nets.MLP([100, 50, 1])(x))
    params, state = jax.jit(enn.init)(jax.random.key(0), D1.x, jax.random.key(0))
    with pytest.raises(ValueError, match="5301: take 'low_rank'"):
        posteriors.fit_linearised_laplace(enn, params, state, D1, "gaussian")
    posterior = posteriors.fit_linearised_laplace(
        enn, params, state, D1, "gaussian", structure="low_rank", rank=5
    )
    assert posterior.params["linearised_laplace"]["vectors"].shape == (5301, 5)
