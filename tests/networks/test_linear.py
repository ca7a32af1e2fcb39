import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from enn.networks.mlp import ConcatLinear
from tests.support.fast import X, compiled, key

INDEX = np.array([1.0, -2.0, 0.5], np.float32)


@pytest.mark.parametrize("b_init", [None, hk.initializers.RandomNormal()])
def test_a_linear_layer_on_parts_is_one_on_their_concatenation(b_init):
    joined = jnp.concatenate([jnp.tile(INDEX, (2, 1)), X], axis=1)

    def parts(x, z):
        return ConcatLinear(4, b_init=b_init, name="linear")(z, x.T).T

    def whole(x):
        return hk.Linear(4, b_init=b_init, name="linear")(x)

    parts, whole = (
        hk.without_apply_rng(hk.transform(forward)) for forward in (parts, whole)
    )
    params = compiled(whole.init)(key(0), joined)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
        compiled(parts.init)(key(0), X, INDEX),
        params,
    )
    out = compiled(parts.apply)(params, X, INDEX)
    expected = compiled(whole.apply)(params, joined)
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("num_outputs", [1, 4])  # Less and more than rows of a batch.
def test_the_projected_output_is_the_output_times_the_projection(num_outputs):
    size = num_outputs * len(INDEX)
    init = hk.initializers.RandomNormal()

    def projected(x, z):
        layer = ConcatLinear(size, b_init=init, name="linear")
        return layer.projected(z, x.T, projection=z)

    def whole(x, z):
        return ConcatLinear(size, b_init=init, name="linear")(z, x.T).T

    projected, whole = (
        hk.without_apply_rng(hk.transform(forward)) for forward in (projected, whole)
    )
    params = compiled(whole.init)(key(0), X, INDEX)
    matrices = compiled(whole.apply)(params, X, INDEX).reshape(len(X), num_outputs, -1)
    out = compiled(projected.apply)(params, X, INDEX)
    np.testing.assert_allclose(out, matrices @ INDEX, rtol=1e-5, atol=1e-5)
