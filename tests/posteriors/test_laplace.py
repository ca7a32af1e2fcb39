"""Laplace approximations of the last layer: closed forms, and what goes wrong."""

import os
import subprocess
import sys
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from enn import losses, networks, posteriors, utils
from enn.datasets import ArrayBatch
from enn.posteriors import base, curvature
from tests.posteriors.data import D1, D2, TEST_X, linear, linear_params
from tests.support import cost

MODE_1 = linear_params([[0.6913386]], [0.1921260])
MODE_2 = linear_params([[-0.4797527, 0.4797527]], [-0.0194285, 0.0194285])
W = linear_params([[1, -0.5, 0.2]], [0.3, 0, -0.4])
LABELS = ArrayBatch(x=D1.x, y=np.array([[0], [1], [2], [0], [1]]))


def _fit(data: Any = D1, params: Any = MODE_1, likelihood: Any = "gaussian", **kw: Any):
    if likelihood == "gaussian":
        kw = {"noise_std": 0.5, **kw}
    if "parse_hidden" not in kw:
        kw = {"last_layer": "linear", **kw}
    enn = linear(np.shape(params["linear"]["b"])[0])
    return posteriors.fit_laplace(enn, params, {}, data, likelihood, **kw)


def _predict(posterior: posteriors.Posterior, x: Any, index: Any) -> Any:
    out, _ = posterior.enn.apply(posterior.params, posterior.state, x, index)
    return networks.parse_net_output(out)


def _moments(posterior: posteriors.Posterior, x: Any) -> tuple[Any, Any]:
    """The mean [batch, C] and covariance of all outputs: the layer is linear in z."""
    dim = posterior.enn.indexer.index_dim
    mean = _predict(posterior, x, jnp.zeros(dim))
    at_axes = jax.vmap(lambda z: _predict(posterior, x, z))(jnp.eye(dim))
    columns = (at_axes - mean[None]).reshape(dim, -1)
    return mean, columns.T @ columns


def test_regression_has_the_exact_posterior() -> None:
    posterior = _fit()
    mean, covariance = _moments(posterior, TEST_X)
    np.testing.assert_allclose(mean, [[0.5377953], [2.2661417]], rtol=1e-6)
    expected = [[0.0507874, 0.0763780], [0.0763780, 0.3086614]]
    np.testing.assert_allclose(covariance, expected, rtol=1e-5)
    factor = posterior.params["gaussian_last_layer"]["factor"][:, 0]
    expected = [[0.1796053, -0.0285097], [0, 0.2209500]]
    np.testing.assert_allclose(factor, expected, atol=1e-6)
    preds = _predict(posterior, TEST_X, np.array([1, -0.5]))
    np.testing.assert_allclose(preds, [[0.5242504], [2.7372472]], rtol=1e-5)
    evidence = posterior.log_marginal_likelihood
    np.testing.assert_allclose(evidence, -5.4486826, rtol=1e-5)
    assert posterior.num_data == 5
    # The evidence of a linear model, log N(y; 0, σ² I + φ̃ φ̃ᵀ).
    phi = np.hstack([D1.x, np.ones([5, 1])])
    covariance = 0.25 * np.eye(5) + phi @ phi.T
    quadratic = (D1.y.T @ np.linalg.solve(covariance, D1.y)).item()
    log_det = np.linalg.slogdet(2 * np.pi * covariance)[1]
    np.testing.assert_allclose(evidence, -0.5 * (quadratic + log_det), rtol=1e-5)


@pytest.mark.parametrize("structure", ["joint", "shared", "per_output", "kronecker"])
def test_structures_of_one_gaussian_output_are_exact(structure: Any) -> None:
    posterior = _fit(structure=structure)
    _, covariance = _moments(posterior, TEST_X)
    expected = [[0.0507874, 0.0763780], [0.0763780, 0.3086614]]
    np.testing.assert_allclose(covariance, expected, rtol=1e-5)
    evidence = posterior.log_marginal_likelihood
    np.testing.assert_allclose(evidence, -5.4486826, rtol=1e-5)


def test_classification() -> None:
    posterior = _fit(D2, MODE_2, "categorical")
    mean, covariance = _moments(posterior, np.array([[0.5], [4.0]]))
    expected = [[0.8129499, 0.4370501], [0.4370501, 0.8129499]]
    np.testing.assert_allclose(covariance[:2, :2], expected, rtol=1e-5)
    gap = np.kron(np.eye(2), [[-1.0, 1.0]])
    variances = np.diag(gap @ covariance @ gap.T)
    np.testing.assert_allclose(variances, [0.7517998, 9.4429877], rtol=1e-5)
    evidence = posterior.log_marginal_likelihood
    np.testing.assert_allclose(evidence, -4.3892836, rtol=1e-5)
    # E sigmoid(gap) by quadrature.
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    gaps = (mean[:, 1] - mean[:, 0])[:, None] + np.sqrt(variances)[:, None] * nodes[
        None
    ]
    probs = (1 / (1 + np.exp(-gaps))) @ weights / weights.sum()
    np.testing.assert_allclose(probs, [0.6098152, 0.8626778], rtol=1e-5)


@pytest.mark.slow
def test_the_joint_precision_is_the_hessian() -> None:
    def loss(flat: jax.Array) -> jax.Array:
        logits = D2.x @ flat[:2][None] + flat[2:][None]
        log_probs = jax.nn.log_softmax(logits)
        picked = jnp.take_along_axis(log_probs, D2.y, axis=1)
        return 0.5 * jnp.sum(jnp.square(flat)) - jnp.sum(picked)

    mode = np.concatenate([np.ravel(leaf) for leaf in MODE_2["linear"].values()])
    hessian = np.linalg.inv(jax.hessian(loss)(mode))
    np.testing.assert_allclose(jax.grad(loss)(mode), np.zeros(4), atol=1e-5)
    factor = _fit(D2, MODE_2, "categorical").params["gaussian_last_layer"]["factor"]
    flat = np.asarray(factor).reshape(4, 4)
    np.testing.assert_allclose(flat @ flat.T, hessian, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("structure", "expected"),
    [
        ("joint", [0.7553972, 0.8725956, 0.8341114]),
        ("per_output", [0.6274981, 0.7951290, 0.7257431]),
        ("diagonal", [0.6706272, 0.6974331, 0.7246998]),
        ("kronecker", [0.7432288, 0.7564712, 0.7824395]),
    ],
)
def test_structures_of_three_classes(structure: Any, expected: list[float]) -> None:
    posterior = _fit(LABELS, W, "categorical", structure=structure)
    _, covariance = _moments(posterior, TEST_X[:1])
    np.testing.assert_allclose(np.diag(covariance), expected, rtol=1e-5)
    if structure == "joint":
        np.testing.assert_allclose(covariance[0, 1], 0.2280593, rtol=1e-5)
    arrays = posterior.params["gaussian_last_layer"]
    factor = arrays if structure == "kronecker" else arrays["factor"]
    features = np.array([[0.5, 1.0]])
    variance = networks.marginal_variance(structure, factor, features)
    np.testing.assert_allclose(variance[0], expected, rtol=1e-5)


@pytest.mark.slow
def test_a_shared_covariance_of_three_outputs() -> None:
    data = ArrayBatch(x=D1.x, y=np.zeros([5, 3]))
    posterior = _fit(data, W, structure="shared", noise_std=1.0)
    _, covariance = _moments(posterior, TEST_X[:1])
    np.testing.assert_allclose(covariance, 0.18 * np.eye(3), rtol=1e-5, atol=1e-7)
    kronecker = _fit(data, W, structure="kronecker", noise_std=1.0)
    joint = _fit(data, W, noise_std=1.0)
    for other in (kronecker, joint):
        np.testing.assert_allclose(
            _moments(other, TEST_X[:1])[1], covariance, 1e-5, 1e-6
        )
        np.testing.assert_allclose(
            other.log_marginal_likelihood, posterior.log_marginal_likelihood, rtol=1e-5
        )


@pytest.mark.parametrize("structure", ["joint", "shared", "per_output", "kronecker"])
def test_the_best_prior_precision_on_the_grid(structure: Any) -> None:
    best = _fit(structure=structure, prior_precision="marginal_likelihood")
    at_grid = _fit(structure=structure, prior_precision=10**0.5)
    np.testing.assert_allclose(
        best.log_marginal_likelihood, at_grid.log_marginal_likelihood, rtol=1e-6
    )


def test_the_evidence_is_largest_at_the_best_prior_precision() -> None:
    below, best, above = (
        float(_fit(prior_precision=delta).log_marginal_likelihood)
        for delta in (10**0.4, 3.3951856, 10**0.6)
    )
    assert best > max(below, above)


def test_the_best_prior_precision_of_a_diagonal() -> None:
    best = _fit(structure="diagonal", prior_precision="marginal_likelihood")
    curvature = np.array([7.5, 5.0]) / 0.5**2  # Σ φ̃² / σ²
    deltas = 10 ** np.linspace(-4, 4, 81)
    squared_norm = 0.6913386**2 + 0.1921260**2
    ratios = np.log1p(curvature[None] / deltas[:, None]).sum(1)
    errors = D1.x * 0.6913386 + 0.1921260 - D1.y
    log_likelihood = -2 * np.sum(errors**2) - 2.5 * np.log(2 * np.pi * 0.25)
    evidences = log_likelihood - 0.5 * (ratios + deltas * squared_norm)
    np.testing.assert_allclose(best.log_marginal_likelihood, evidences.max(), rtol=1e-5)


@pytest.mark.slow
def test_the_deep_kernel_of_the_testbed() -> None:
    features = np.array([[1, 2, 2], [0, 3, 4], [2, 0, 0], [1, 1, 1]], np.float32)
    tau = 0.1

    def net(x: Any) -> Any:
        return networks.OutputWithPrior(hk.Linear(1)(x), extra={"features": x})

    def unit_features(out: Any) -> Any:
        phi = out.extra["features"]
        return phi / (jnp.linalg.norm(phi, axis=1, keepdims=True) + 1e-6)

    enn = networks.wrap_net_fn_as_enn(net)
    params, state = enn.init(jax.random.key(0), features, jax.random.key(0))
    posterior = posteriors.fit_laplace(
        enn,
        params,
        state,
        ArrayBatch(x=features, y=np.zeros([4, 1])),
        "gaussian",
        structure="shared",
        parse_hidden=unit_features,
        bias=False,
        noise_std=np.sqrt(4 * tau),
        temperature=4 / (4 * tau),
    )
    assert posterior.log_marginal_likelihood is None
    _, covariance = _moments(posterior, np.array([[1, 0, 1], [0, 0, 0]], np.float32))
    np.testing.assert_allclose(np.diag(covariance), [3.4669023, 0], rtol=1e-5)


@pytest.mark.slow
def test_temperature_multiplies_the_covariance() -> None:
    for structure in ("joint", "kronecker"):
        _, covariance = _moments(_fit(structure=structure, temperature=4.0), TEST_X)
        np.testing.assert_allclose(covariance[0, 0], 4 * 0.0507874, rtol=1e-5)


def _rows(rows: slice) -> ArrayBatch:
    return ArrayBatch(x=LABELS.x[rows], y=LABELS.y[rows])


@pytest.mark.slow
def test_batches_weights_and_an_earlier_fit_add_up() -> None:
    whole = _fit(LABELS, W, "categorical")
    parts = [_rows(slice(i, i + 2)) for i in (0, 2, 4)]
    first = _fit(parts[:1], W, "categorical")
    assert first.num_data == 2
    twice = np.tile(np.arange(5), 2)
    weighted = ArrayBatch(
        x=LABELS.x[twice], y=LABELS.y[twice], weights=np.full([10, 1], 0.5)
    )
    for posterior in (
        _fit(parts, W, "categorical"),
        _fit(iter(parts[1:]), W, "categorical", previous=first),
        _fit(weighted, W, "categorical"),
    ):
        assert posterior.num_data == 5
        np.testing.assert_allclose(
            posterior.log_marginal_likelihood, whole.log_marginal_likelihood, rtol=1e-5
        )
        np.testing.assert_allclose(
            _moments(posterior, TEST_X)[1], _moments(whole, TEST_X)[1], rtol=1e-5
        )


def test_rows_on_a_mesh() -> None:
    mesh = jax.make_mesh([jax.device_count()], ["data"])
    posterior = _fit(LABELS, W, "categorical", mesh=mesh)
    _, expected = _moments(_fit(LABELS, W, "categorical"), TEST_X)
    np.testing.assert_allclose(_moments(posterior, TEST_X)[1], expected, rtol=1e-5)


@pytest.mark.slow
def test_rows_on_a_mesh_of_eight_devices() -> None:
    flags = "--xla_force_host_platform_device_count=8"
    env = {**os.environ, "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}"}
    test = f"{__file__}::{test_rows_on_a_mesh.__name__}"
    command = [sys.executable, "-m", "pytest", "-q", test]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
@pytest.mark.strict
@pytest.mark.parametrize("structure", ["joint", "per_output", "diagonal", "kronecker"])
def test_closed_forms_in_float32_and_float64(structure: Any) -> None:
    w, b = np.array([[1, -0.5, 0.2]]), np.array([0.3, 0, -0.4])
    probs = np.exp(D1.x @ w + b)
    probs = probs / probs.sum(axis=1, keepdims=True)
    phi = np.hstack([D1.x, np.ones([5, 1])])
    hessians = np.stack([np.diag(p) - np.outer(p, p) for p in probs])
    curvature = np.einsum("nf,ng,ncd->fcgd", phi, phi, hessians)
    if structure == "kronecker":
        factors = phi.T @ phi / 5, hessians.sum(axis=0)
        curvature = np.einsum("fg,cd->fcgd", *factors)
    elif structure != "joint":
        curvature = curvature * np.eye(3)[None, :, None, :]
        if structure == "diagonal":
            curvature = curvature * np.eye(2)[:, None, :, None]
    covariance = np.linalg.inv(curvature.reshape(6, 6) + 2 * np.eye(6))
    test = np.hstack([TEST_X, np.ones([2, 1])])
    rows = np.einsum("bf,cd->bcfd", test, np.eye(3)).reshape(6, 6)
    posterior = _fit(
        LABELS,
        linear_params(w, b, float),
        "categorical",
        structure=structure,
        prior_precision=2.0,
    )
    rtol = 1e-9 if jnp.result_type(float) == np.float64 else 1e-5
    _, found = _moments(posterior, TEST_X)
    expected = rows @ covariance @ rows.T
    np.testing.assert_allclose(found, expected, rtol, rtol / 100)


@pytest.mark.slow
def test_a_member_of_an_ensemble() -> None:
    model = hk.without_apply_rng(
        hk.transform_with_state(lambda x: hk.nets.MLP([4, 3])(x))
    )
    enn = networks.EnsembleWithState(model, 3)
    params, state = enn.init(jax.random.key(0), LABELS.x, 0)
    posterior = posteriors.fit_laplace(
        enn, params, state, LABELS, "categorical", last_layer="mlp/~/linear_1", index=2
    )
    mean, _ = _moments(posterior, TEST_X)
    expected = networks.parse_net_output(enn.apply(params, state, TEST_X, 2)[0])
    np.testing.assert_allclose(mean, expected, rtol=1e-5)


def test_a_network_trained_with_decay_is_at_its_mode() -> None:
    # δ = 2 N c: with the mean loss and decay c, the gradient of the Laplace loss is 0.
    num_data, prior_precision = len(D1.y), 1.0
    decay = prior_precision / (2 * num_data)
    enn = linear(1)

    def scaled_l2(*args: Any) -> Any:
        loss, aux = losses.L2Loss()(*args)
        return loss / (2 * 0.5**2), aux

    loss_fn = losses.add_l2_weight_decay(
        losses.average_single_index_loss(scaled_l2), scale=decay
    )
    grads = jax.grad(
        lambda params: loss_fn(enn, params, {}, D1, jax.random.PRNGKey(0))[0]
    )(MODE_1)
    for grad in jax.tree.leaves(grads):
        np.testing.assert_allclose(grad, np.zeros_like(grad), atol=1e-6)


@pytest.mark.slow
def test_batch_normalisation_is_for_evaluation() -> None:
    def net(is_training: bool) -> networks.EnnArray:
        def forward(x: Any) -> Any:
            x = hk.BatchNorm(True, True, 0.9)(hk.Linear(4)(x), is_training)
            return hk.Linear(1, name="last")(jax.nn.relu(x))

        return networks.wrap_net_fn_as_enn(forward)

    train, evaluate = net(True), net(False)
    params, state = train.init(jax.random.key(0), D1.x, jax.random.key(0))
    args = (params, state, D1, "gaussian")
    with pytest.raises(ValueError, match="build the network for evaluation"):
        posteriors.fit_laplace(train, *args, last_layer="last")
    posterior = posteriors.fit_laplace(evaluate, *args, last_layer="last")
    mean, _ = _moments(posterior, TEST_X)
    expected, _ = evaluate.apply(params, state, TEST_X, None)
    np.testing.assert_allclose(mean, expected, rtol=1e-5)
    assert posterior.state is state


@pytest.mark.parametrize("structure", ["diagonal", "per_output", "kronecker"])
def test_no_array_has_rows_times_classes_times_classes(structure: Any) -> None:
    rows, classes = 16, 50
    features, probs = jnp.ones([rows, 4]), jnp.ones([rows, classes])

    def sums(features: Any, weights: Any, probs: Any) -> Any:
        hessian = curvature.OutputCurvature(probs, probs)
        return curvature.last_layer_sums(structure, features, weights, hessian)

    jaxpr = jax.make_jaxpr(sums)(features, features[:, 0], probs)
    sizes = [v.aval.size for eqn in jaxpr.eqns for v in eqn.outvars]
    assert max(sizes) < rows * classes * classes


def test_the_curvature_of_a_batch_in_one_pass() -> None:
    """2 N F1² operations for the Gram matrix, times C + C² for the joint one."""
    rows, size, classes = 256, 33, 5
    features, probs = jnp.ones([rows, size]), jnp.ones([rows, classes])

    def sums(structure: Any, probs: Any) -> Any:
        hessian = curvature.OutputCurvature(probs, probs)
        return lambda f: curvature.last_layer_sums(structure, f, f[:, 0], hessian)

    gram = 2 * rows * size**2
    assert cost.flops(sums("shared", probs), features) < 1.1 * gram
    assert cost.flops(sums("kronecker", probs), features) < 1.1 * gram
    joint = cost.flops(sums("joint", probs), features)
    assert gram * classes**2 < joint < 1.1 * gram * (classes + classes**2)


def _fails(message: str, error: Any = ValueError, **kw: Any) -> Any:
    return pytest.param(kw, error, message, id=message[:40])


@pytest.mark.parametrize(
    ("kw", "error", "message"),
    [
        _fails("structure must be one of 'diagonal'", structure="full"),
        _fails("likelihood must be one of 'categorical', 'gaussian'", likelihood="mse"),
        _fails("prior_precision must be > 0 and finite, got 0", prior_precision=0.0),
        _fails("prior_precision must be one of", prior_precision="best"),
        _fails("noise_std must be > 0 and finite, got -1", noise_std=-1.0),
        _fails(
            "noise_std is of a Gaussian likelihood, got 0.5",
            likelihood="categorical",
            noise_std=0.5,
        ),
        _fails("temperature must be > 0", temperature=-1.0),
        _fails(
            "'shared' is of a Gaussian", likelihood="categorical", structure="shared"
        ),
        _fails("last_layer or parse_hidden, got neither", last_layer=None),
        _fails(
            "last_layer or parse_hidden, got both",
            last_layer="linear",
            parse_hidden=lambda out: out.train,
        ),
        _fails(
            "needs the weights of the last layer",
            parse_hidden=lambda out: out.train,
            prior_precision="marginal_likelihood",
        ),
        _fails("data must have rows, got none", data=[]),
        _fails("rows of weight > 0", data=D1.replace(weights=np.zeros([5, 1]))),
        _fails("weights must be >= 0, got -1", data=D1.replace(weights=-(D1.y**0))),
        _fails(
            r"labels must be integers in \[0, 3\), got 3",
            data=LABELS.replace(y=LABELS.y + 1),
            params=W,
            likelihood="categorical",
        ),
        _fails("curvature of the data is not finite", data=D1.replace(x=D1.x * np.nan)),
        _fails(
            "must be an ArrayBatch or an iterable of them, got tuple",
            TypeError,
            data=[(D1.x, D1.y)],
        ),
        _fails("its `.data`", TypeError, data=utils.make_batch_iterator(D1)),
        _fails("previous must be a fit of the same", previous="kronecker"),
    ],
)
def test_errors(kw: dict[str, Any], error: Any, message: str) -> None:
    if "previous" in kw:
        kw = {"previous": _fit(structure=kw["previous"])}
    with pytest.raises(error, match=message):
        _fit(**kw)


def test_features_must_give_the_output() -> None:
    enn = networks.scale_enn_output(linear(1), 1.01)
    with pytest.raises(ValueError, match="must be the output of the network"):
        posteriors.fit_laplace(enn, MODE_1, {}, D1, "gaussian", last_layer="linear")
    enn = networks.wrap_net_fn_as_enn(lambda x: hk.nets.MLP([4, 3])(x))
    params, _ = enn.init(jax.random.key(0), D1.x, jax.random.key(0))
    with pytest.raises(ValueError, match="Is another module the last"):
        posteriors.fit_laplace(
            enn, params, {}, LABELS, "categorical", last_layer="mlp/~/linear_0"
        )


@pytest.mark.slow
def test_features_of_half_precision_give_the_output() -> None:
    enn = networks.wrap_net_fn_as_enn(lambda x: hk.nets.MLP([512, 1])(x))
    x = jnp.asarray(np.random.default_rng(0).normal(size=[20, 8]), jnp.bfloat16)
    params, _ = enn.init(jax.random.key(0), x, jax.random.key(0))
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    data = ArrayBatch(x=x, y=np.zeros([20, 1], np.float32))
    posterior = posteriors.fit_laplace(
        enn, params, {}, data, "gaussian", last_layer="mlp/~/linear_1"
    )
    assert np.isfinite(posterior.log_marginal_likelihood)


def test_an_output_without_an_axis_of_outputs() -> None:
    enn = networks.wrap_net_fn_as_enn(lambda x: hk.Linear(1)(x)[:, 0])
    with pytest.raises(ValueError, match="network output must have shape"):
        posteriors.fit_laplace(enn, MODE_1, {}, D1, "gaussian", last_layer="linear")


def test_a_new_last_layer_has_the_prior_of_the_fit() -> None:
    enn = _fit(structure="diagonal", prior_precision=25.0).enn
    params, _ = enn.init(jax.random.key(0), D1.x, jnp.zeros(2))
    factor = params["gaussian_last_layer"]["factor"]
    np.testing.assert_allclose(factor, np.full([2, 1], 0.2), rtol=1e-6)


def test_a_state_may_hold_what_is_no_number() -> None:
    base.check_state({"mean": np.array([np.nan, 1])}, {"mean": np.array([np.nan, 1])})
    with pytest.raises(ValueError, match="changes the network state"):
        base.check_state({"mean": np.array([np.nan, 1])}, {"mean": np.ones(2)})


def test_the_curvature_of_outputs_has_no_rounding_of_large_sums() -> None:
    probs = np.random.default_rng(0).dirichlet(np.full(10, 0.1), size=60_000)
    probs = jnp.asarray(probs, jnp.float32)
    hessian = curvature.OutputCurvature(probs, probs)
    ones = jnp.ones([len(probs), 1])
    right = curvature.last_layer_sums("kronecker", ones, ones[:, 0], hessian)["right"]
    # Of 6000 and more on the diagonal: all logits together change nothing.
    assert np.abs(np.asarray(right, np.float64).sum(axis=1)).max() < 2e-3


def test_a_structure_too_large_names_others() -> None:
    enn = networks.wrap_net_fn_as_enn(lambda x: hk.Linear(1000)(x))
    x = np.zeros([2, 2048], np.float32)
    params = linear_params(np.zeros([2048, 1000]), np.zeros(1000))
    data = ArrayBatch(x=x, y=np.zeros([2, 1], int))
    with pytest.raises(ValueError, match=r"GiB.*\['kronecker', 'diagonal'\]"):
        posteriors.fit_laplace(
            enn, params, {}, data, "categorical", last_layer="linear"
        )
