"""Many indices in blocks: the same outputs, and no work done twice."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from enn.networks.many_indices.hoisting import after_shared_work
from enn.networks.many_indices.index_map import map_indices

X = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
INDICES = np.random.default_rng(1).normal(size=(7, 3)).astype(np.float32)


def outputs(x: Any, indices: Any, batch_z: int | None) -> Any:
    def fn(z: jax.Array) -> dict[str, jax.Array]:
        shared = jnp.sin(x).T
        return {"product": jax.nn.relu(shared @ z), "sum": jnp.sum(z) + shared}

    return map_indices(fn, indices, batch_z)


@pytest.mark.strict
@pytest.mark.parametrize("batch_z", [1, 2, 3, 7, 10, None])
def test_blocks_of_any_size_give_the_outputs_of_each_index(batch_z: int | None) -> None:
    result = jax.jit(outputs, static_argnums=2)(X, INDICES, batch_z)
    shared = np.sin(X).T
    np.testing.assert_allclose(
        result["product"], np.maximum(INDICES @ shared.T, 0), 1e-5, 1e-6
    )
    sums = INDICES.sum(axis=1)[:, None, None] + shared
    np.testing.assert_allclose(result["sum"], sums, 1e-5, 1e-6)


def test_work_without_the_index_is_done_before_the_loop() -> None:
    jaxpr = jax.make_jaxpr(outputs, static_argnums=2)(X, INDICES[:6], 2)
    (loop,) = (e for e in jaxpr.eqns if e.primitive.name == "scan")
    body = str(loop.params["jaxpr"])
    assert "dot_general" in body
    assert " sin" in str(jaxpr)
    assert " sin" not in body
    # One layout of the weights, and one of each block's product with them.
    assert (str(jaxpr).count(" transpose"), body.count(" transpose")) == (2, 1)


def test_equal_work_before_the_loop_is_done_once() -> None:
    def fn(z: jax.Array) -> jax.Array:
        twice = [jnp.tanh(jnp.sin(X)).T @ jnp.sum(X, 1) for _ in range(2)]
        return z.sum() * (twice[0] - 2 * twice[1] + jnp.cos(X).T @ jnp.sum(X, 1))

    traced = jax.make_jaxpr(lambda z: after_shared_work(fn, z)(z))(INDICES[0])
    counts = {name: str(traced).count(f" {name}") for name in ("sin", "cos", "dot_gen")}
    assert counts == {"sin": 1, "cos": 1, "dot_gen": 2}
    np.testing.assert_allclose(
        after_shared_work(fn, INDICES[0])(INDICES[1]), fn(INDICES[1]), 1e-5
    )


def test_random_keys_as_indices() -> None:
    keys = jax.random.split(jax.random.key(0), 5)
    draws = map_indices(lambda key: jax.random.uniform(key, (2,)), keys, 2)
    for key, draw in zip(keys, draws, strict=True):
        np.testing.assert_array_equal(draw, jax.random.uniform(key, (2,)))


@pytest.mark.slow
def test_gradients_pass_through_the_loop() -> None:
    def total(x: jax.Array, batch_z: int) -> jax.Array:
        return jnp.sum(jnp.square(outputs(x, INDICES, batch_z)["product"]))

    gradients = [jax.grad(total)(X, batch_z) for batch_z in (2, 7)]
    np.testing.assert_allclose(*gradients, 1e-5, 1e-6)


@pytest.mark.parametrize("batch_z", [0, -1, 1.5])
def test_size_of_blocks_out_of_range(batch_z: Any) -> None:
    with pytest.raises(ValueError, match="batch_z must be an integer >= 1"):
        map_indices(jnp.sum, INDICES, batch_z)


@pytest.mark.parametrize(("weights_mib", "num_blocks"), [(0, 2), (16, 8), (64, 8)])
def test_blocks_leave_room_in_cache_for_what_they_share(
    weights_mib: int, num_blocks: int
) -> None:
    # Of 32 MiB the weights take up to half. What is left holds 8 sines of 4 MiB, or
    # not quite 4 with the products beside them; blocks are of one size.
    def run(indices: jax.Array, weights: jax.Array) -> Any:
        return map_indices(lambda z: (jnp.sin(z), weights @ z), indices)

    indices = jax.ShapeDtypeStruct((16, 2**20), jnp.float32)
    weights = jax.ShapeDtypeStruct((weights_mib // 4, 2**20), jnp.float32)
    jaxpr = jax.make_jaxpr(run)(indices, weights)
    (loop,) = (e for e in jaxpr.eqns if e.primitive.name == "scan")
    assert loop.params["length"] == num_blocks
