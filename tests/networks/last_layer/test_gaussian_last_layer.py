"""The Gaussian last layer: by hand, by XLA's count of operations, its errors."""

from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from enn import networks
from enn.networks.checkpoints import EnnCheckpoint
from enn.networks.last_layer import Structure
from tests.support import cost

STRUCTURES = get_args(Structure)
PHI = np.array([[0.5, 1.0]], np.float32)
L0 = np.array([[1, 2], [0, 3]], np.float32)
L1 = np.array([[1, 0], [1, 1]], np.float32)
S = np.array([[1, 2], [3, 4]], np.float32)
KRONECKER = {
    "left": np.array([[0.6, -0.8], [0.8, 0.6]], np.float32),
    "right": np.array([[0, 1], [1, 0]], np.float32),
    "scale": S,
}


@pytest.mark.parametrize(
    ("structure", "factor", "index", "expected"),
    [
        ("diagonal", S, [1, 2, 3, 4], [9.5, 18]),
        ("shared", L0, [1, 2, 3, 4], [12.5, 17]),
        ("per_output", np.stack([L0, L1]), [1, 2, 3, 4], [12.5, 7]),
        ("joint", S[:, :, None], [2], [7, 10]),
        # Of higher rank than features: weights first.
        ("joint", np.stack([S, S, S], 2), [1, 0, 1], [7, 10]),
        ("kronecker", KRONECKER, [1, 2, 3, 4], [7.6, 2.9]),
    ],
)
def test_outputs_by_hand(
    structure: Any, factor: Any, index: list[int], expected: list[float]
) -> None:
    out = networks.apply_factor(structure, factor, PHI, np.array(index, np.float32))
    np.testing.assert_allclose(out, [expected], rtol=1e-6)


def test_the_variance_of_a_shared_factor_by_hand() -> None:
    variance = networks.marginal_variance("shared", L0, PHI)
    np.testing.assert_array_equal(variance, [[16.25]])


def _random_precision(structure: str, rng: np.random.Generator, f: int, c: int) -> Any:
    def positive(*shape: int) -> np.ndarray:
        root = rng.normal(size=(*shape, shape[-1] + 2)).astype(np.float32)
        return root @ np.moveaxis(root, -1, -2)

    match structure:
        case "diagonal":
            return rng.uniform(1, 2, size=(f, c)).astype(np.float32)
        case "shared":
            return positive(f)
        case "per_output":
            return positive(c, f)
        case "joint":
            return positive(f * c).reshape(f, c, f, c)
    return {"left": positive(f), "right": positive(c), "prior_precision": 0.5}


def _covariance(structure: str, precision: Any, f: int, c: int) -> np.ndarray:
    """The covariance of all weights (feature, output), by inversion in float64."""
    eye = np.eye(c)
    precision = jax.tree.map(lambda x: np.asarray(x, np.float64), precision)
    match structure:
        case "diagonal":
            full = np.diag(precision.ravel())
        case "shared":
            full = np.kron(precision, eye)
        case "per_output":
            full = np.einsum("cfg,cd->fcgd", precision, eye).reshape(f * c, f * c)
        case "joint":
            full = precision.reshape(f * c, f * c)
        case _:
            full = np.kron(precision["left"], precision["right"])
            full = full + precision["prior_precision"] * np.eye(f * c)
    return np.linalg.inv(full)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_a_factor_has_the_covariance_of_its_precision(structure: Any) -> None:
    f, c, rng = 3, 2, np.random.default_rng(0)
    precision = _random_precision(structure, rng, f, c)
    factor = networks.factor_from_precision(structure, precision)
    features = rng.normal(size=(4, f)).astype(np.float32)
    dim = {"joint": f * c}.get(structure, f * c)
    # The layer is linear in z: its columns give the covariance exactly.
    columns = jax.vmap(
        lambda z: networks.apply_factor(structure, factor, features, z).ravel()
    )(jnp.eye(dim))
    rows = np.einsum("bf,cd->bcfd", features, np.eye(c)).reshape(-1, f * c)
    expected = rows @ _covariance(structure, precision, f, c) @ rows.T
    np.testing.assert_allclose(columns.T @ columns, expected, rtol=1e-4, atol=1e-5)
    variance = networks.marginal_variance(structure, factor, features)
    np.testing.assert_allclose(
        np.broadcast_to(variance, (4, c)).ravel(), np.diag(expected), rtol=1e-4
    )


@pytest.mark.parametrize(
    ("structure", "rank", "expected"),
    [
        ("diagonal", None, 4_257_000),
        ("shared", None, 4_363_392),
        ("per_output", None, 4_920_960),
        ("joint", 8, 1_192_960),
        ("joint", 165, 15_114_000),
        ("kronecker", None, 5_036_392),
    ],
)
def test_operations_of_200_indices(
    structure: Any, rank: int | None, expected: int
) -> None:
    layer = networks.GaussianLastLayer(32, 5, structure, rank)
    hidden = jnp.zeros([64, 32])
    params, _ = layer.init(jax.random.key(0), hidden, 0, hidden)
    indices = jnp.zeros([200, layer.indexer.index_dim])
    factor = params["gaussian_last_layer"]
    factor = factor if structure == "kronecker" else factor["factor"]

    def at_indices(features: Any, factor: Any, indices: Any) -> Any:
        return jax.vmap(
            lambda z: networks.apply_factor(structure, factor, features, z)
        )(indices)

    features = jnp.zeros([64, 33])
    assert cost.flops(at_indices, features, factor, indices) == expected


@pytest.mark.slow
@pytest.mark.parametrize("structure", STRUCTURES)
def test_a_thousand_indices_cost_less_than_a_third_of_a_resnet(structure: Any) -> None:
    config = networks.CanonicalResNets.RESNET_18.value
    base = networks.EnsembleResNetENN(10, is_training=False, config=config)
    images = jnp.zeros([64, 32, 32, 3])
    layer = networks.GaussianLastLayer(64, 10, structure)
    hidden = jnp.zeros([64, 64])
    params, _ = layer.init(jax.random.key(0), hidden, 0, hidden)
    indices = jnp.zeros([1000, layer.indexer.index_dim])

    def at_indices(params: Any, hidden: Any, indices: Any) -> Any:
        return jax.vmap(lambda z: layer.apply(params, {}, hidden, z, hidden)[0].train)(
            indices
        )

    own = cost.flops(at_indices, params, hidden, indices)
    assert own < 0.3 * cost.flops_at_indices(base, images, None)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_first_the_layer_has_its_prior(structure: Any) -> None:
    layer = networks.GaussianLastLayer(3, 2, structure, prior_precision=4.0)
    hidden = np.array([[1, 2, 0], [0, 0, 0]], np.float32)
    params, state = layer.init(jax.random.key(0), hidden, 0, hidden)
    assert state == {}
    columns = jax.vmap(
        lambda z: layer.apply(params, state, hidden, z, hidden)[0].preds
    )(jnp.eye(layer.indexer.index_dim))
    variance = jnp.sum(jnp.square(columns), axis=0)
    np.testing.assert_allclose(variance, [[1.5, 1.5], [0.25, 0.25]], rtol=1e-6)


def test_rows_share_the_draw_of_an_index() -> None:
    layer = networks.GaussianLastLayer(2, 1, "shared", bias=False)
    hidden = np.array([[1, 2], [1, 2], [2, 4]], np.float32)
    params, _ = layer.init(jax.random.key(0), hidden, 0, hidden)
    index = layer.indexer(jax.random.key(1))
    out = layer.apply(params, {}, hidden, index, hidden)[0].preds
    np.testing.assert_allclose(out / out[:1], [[1], [1], [2]], rtol=1e-6)


@pytest.mark.slow
def test_on_a_base_network_the_mean_is_the_base() -> None:
    net = networks.epinet.make_mlp_epinet([4, 2], [4], 3)
    x = np.ones([3, 5], np.float32)
    base_index = net.indexer(jax.random.key(3))
    base = net.init(jax.random.key(0), x, base_index)
    name = "base_mlp/~/linear_1"
    layer = networks.GaussianLastLayer(4, 2, "diagonal")
    enn = networks.epinet.combine_base_epinet_as_enn(
        EnnCheckpoint(
            "base", lambda: base, lambda: networks.expose_features(net, name)
        ),
        layer,
        lambda out: out.extra["features"],
        base_index=base_index,
        freeze_base=False,
    )
    params, state = enn.init(jax.random.key(1), x, enn.indexer(jax.random.key(2)))
    assert set(params) == {*base[0], "gaussian_last_layer"}
    zero, _ = enn.apply(params, state, x, jnp.zeros([10]))
    expected, _ = net.apply(*base, x, base_index)
    np.testing.assert_allclose(zero.preds, expected.preds, rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: networks.apply_factor("full", S, PHI, np.ones(4)),
            "structure must be one of 'diagonal', .*; got 'full'",
        ),
        (
            lambda: networks.apply_factor("diagonal", S, PHI, np.ones(3)),
            r"index must have shape \[4\], got \[3\]",
        ),
        (
            lambda: networks.apply_factor("shared", L0, PHI, np.ones(3)),
            r"index must have shape \[2\], got \[3\]",
        ),
        (
            lambda: networks.apply_factor("diagonal", S, PHI[0], np.ones(4)),
            r"features must have shape \[batch, 2\], got \[2\]",
        ),
        (
            lambda: networks.apply_factor("kronecker", S, PHI, np.ones(4)),
            r"'kronecker' has the arrays \['left', 'right', 'scale'\], got",
        ),
        (
            lambda: networks.marginal_variance("joint", S, PHI),
            r"factor must have shape \[F, C, R\], got \[2, 2\]",
        ),
        (
            lambda: networks.factor_from_precision("shared", np.ones([2, 3])),
            r"precision must have shape \[F, F\], got \[2, 3\]",
        ),
        (
            lambda: networks.factor_from_precision(
                "shared", np.array([[1, 2], [2, 1.0]])
            ),
            "not positive definite in float32: its smallest pivot, of row 1, is -3. "
            "Take a larger prior_precision, or float64",
        ),
        (
            lambda: networks.factor_from_precision(
                "per_output", np.stack([np.eye(2), np.diag([0.0, 1.0])])
            ),
            "smallest pivot, of row 0, is 0",
        ),
        (
            lambda: networks.factor_from_precision("diagonal", np.array([[1.0, -2.0]])),
            "smallest pivot, of row 0, output 1, is -2",
        ),
        (
            lambda: networks.GaussianLastLayer(3, 2, "diagonal", rank=2),
            "rank must be None for the structure 'diagonal', got 2",
        ),
        (
            lambda: networks.GaussianLastLayer(3, 2, "joint", prior_precision=0.0),
            "prior_precision must be > 0, got 0",
        ),
        (
            lambda: networks.GaussianLastLayer(0, 2, "joint"),
            "num_features must be an integer >= 1, got 0",
        ),
    ],
)
def test_errors(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_the_layer_rejects_other_features_and_indices() -> None:
    layer = networks.GaussianLastLayer(3, 2, "joint", rank=4)
    hidden = np.ones([5, 3], np.float32)
    params, state = layer.init(jax.random.key(0), hidden, 0, hidden)
    with pytest.raises(ValueError, match=r"hidden must have shape \[batch, 3\]"):
        layer.apply(params, state, hidden, np.ones(4), hidden[:, :2])
    with pytest.raises(ValueError, match=r"index must have shape \[4\], got \[3\]"):
        layer.apply(params, state, hidden, np.ones(3), hidden)
