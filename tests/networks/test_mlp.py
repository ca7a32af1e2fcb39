import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from enn import networks
from enn.networks.mlp import ConcatLinear, ExposedMLP, ProjectedMLP
from tests.support.cost import flops_at_indices, mlp_flops
from tests.support.fast import (
    X,
    assert_output_starts,
    compiled,
    init,
    key,
    output,
    param_shapes,
    random_params,
)

DIM = 3
INDEX = np.array([1.0, -2.0, 0.5], np.float32)
WIDE = jnp.ones((32, 100))


def _exposed(*args, **kwargs):
    return hk.without_apply_rng(hk.transform(lambda x: ExposedMLP(*args, **kwargs)(x)))


def _projected(*args, **kwargs):
    return networks.epistemic_network_from_module(
        lambda: ProjectedMLP(*args, **kwargs), networks.GaussianIndexer(DIM)
    )


def _params(mlp):
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape).astype(np.float32),
        jax.eval_shape(mlp.init, key(0), X),
    )


def _slow_projected(params, inputs, index, concat_index):
    """The definition: the whole output matrix, then its product with the index."""
    layers = [params[name] for name in sorted(params)]
    hidden = np.asarray(inputs)
    if concat_index:
        tiled = np.tile(index, (len(hidden), 1))
        hidden = np.concatenate([tiled, hidden], axis=1)
    for i, layer in enumerate(layers):
        hidden = hidden @ np.asarray(layer["w"]) + np.asarray(layer["b"])
        if i < len(layers) - 1:
            hidden = np.maximum(hidden, 0)
    return hidden.reshape(len(hidden), -1, len(index)) @ index


@pytest.mark.parametrize(
    ("expose_layers", "exposed"),
    [
        (None, [0, 1, 2]),
        ([True, True, True], [0, 1, 2]),
        ([False, True, False], [1]),
        ([True, False, True], [0, 2]),
        ([False, False, False], []),
    ],
)
def test_features_are_the_input_and_the_exposed_layers(expose_layers, exposed):
    mlp = _exposed([4, 5, 2], expose_layers)
    params = _params(mlp)
    out = compiled(mlp.apply)(params, X)
    layers, hidden = [], np.asarray(X)
    for i in range(3):
        layer = params[f"exposed_mlp/~/linear_{i}"]
        hidden = hidden @ np.asarray(layer["w"]) + np.asarray(layer["b"])
        hidden = np.maximum(hidden, 0) if i < 2 else hidden
        layers.append(hidden)
    np.testing.assert_allclose(out.train, layers[-1], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(out.prior, np.zeros((2, 2)))
    features = np.concatenate([X, *(layers[i] for i in exposed)], axis=1)
    assert list(out.extra) == ["exposed_features"]
    np.testing.assert_allclose(
        out.extra["exposed_features"], features, rtol=1e-5, atol=1e-6
    )


def test_parameter_tree_of_an_exposed_mlp():
    params = jax.eval_shape(_exposed([4, 5, 2]).init, key(0), X)
    assert jax.tree.map(lambda leaf: leaf.shape, params) == {
        "exposed_mlp/~/linear_0": {"w": (3, 4), "b": (4,)},
        "exposed_mlp/~/linear_1": {"w": (4, 5), "b": (5,)},
        "exposed_mlp/~/linear_2": {"w": (5, 2), "b": (2,)},
    }


def test_an_exposed_mlp_is_initialised_as_an_mlp():
    exposed = compiled(_exposed([4, 2], name="mlp").init)(key(0), X)
    plain = hk.transform(lambda x: hk.nets.MLP([4, 2])(x))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
        exposed,
        compiled(plain.init)(key(0), X),
    )


@pytest.mark.parametrize("stop_gradient", [True, False])
def test_stop_gradient_stops_the_features_only(stop_gradient):
    mlp = _exposed([4, 2], stop_gradient=stop_gradient)
    params = _params(mlp)

    def of_features(params, x):
        return jnp.sum(mlp.apply(params, x).extra["exposed_features"])

    def of_logits(params, x):
        return jnp.sum(mlp.apply(params, x).train)

    @compiled
    def grads(params, x):
        return [jax.grad(fn, (0, 1))(params, x) for fn in (of_features, of_logits)]

    of_features_grads, of_logits_grads = map(jax.tree.leaves, grads(params, X))
    for grad in of_features_grads:
        assert np.any(grad != 0) != stop_gradient
    for grad in of_logits_grads:
        assert np.any(grad != 0)


def test_initialisers_of_an_exposed_mlp():
    constant = hk.initializers.Constant
    params = _exposed([4, 2], w_init=constant(2.0), b_init=constant(3.0)).init(
        key(0), X
    )
    for layer in params.values():
        np.testing.assert_array_equal(layer["w"], 2)
        np.testing.assert_array_equal(layer["b"], 3)


def test_attributes_of_an_exposed_mlp():
    def forward(x):
        mlp = ExposedMLP([4, 2], [True, False], stop_gradient=False)
        assert (mlp.num_layers, mlp.output_size, mlp.stop_gradient) == (2, 2, False)
        assert len(mlp.layers) == 2
        assert list(mlp.expose_layers) == [True, False]
        return mlp(x).train

    jax.eval_shape(hk.transform(forward).init, key(0), X)


@pytest.mark.parametrize("expose_layers", [[True], [True, True, False], []])
def test_expose_layers_has_an_entry_for_each_layer(expose_layers):
    with pytest.raises(ValueError, match=r"one entry for each of the 2 layers, got \d"):
        _exposed([4, 2], expose_layers).init(key(0), X)


@pytest.mark.parametrize("sizes", [[], [0], [4, -1], [4, 2.5]])
def test_layer_sizes_of_an_exposed_mlp_are_positive(sizes):
    with pytest.raises(ValueError, match="output_sizes must"):
        _exposed(sizes).init(key(0), X)


@pytest.mark.parametrize("shape", [(3,), (2, 3, 1)])
def test_an_exposed_mlp_takes_one_vector_an_example(shape):
    with pytest.raises(ValueError, match=r"shape \[batch, num_features\], got \["):
        _exposed([4, 2]).init(key(0), jnp.ones(shape))


def test_documented_values_of_a_projected_mlp():
    assert_output_starts(output(_projected([4], 2, 3)), [-0.669974, -0.977162])


@pytest.mark.strict
@pytest.mark.parametrize(
    ("hiddens", "concat_index", "sizes"),
    [
        ((4,), True, [(6, 4), (4, 6)]),
        ((), True, [(6, 6)]),
        ((4,), False, [(3, 4), (4, 6)]),
        ((), False, [(3, 6)]),
        ((4, 5), True, [(6, 4), (4, 5), (5, 6)]),
    ],
)
def test_a_projected_mlp_is_the_product_of_its_output_matrix_and_the_index(
    hiddens, concat_index, sizes
):
    enn = _projected(hiddens, 2, DIM, concat_index)
    assert param_shapes(enn) == {
        f"projected_mlp/~/mlp/~/linear_{i}": {"w": size, "b": size[1:]}
        for i, size in enumerate(sizes)
    }
    params, _ = random_params(enn, X)
    out, _ = compiled(enn.apply)(params, {}, X, INDEX)
    expected = _slow_projected(params, X, INDEX, concat_index)
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("concat_index", [True, False])
def test_a_projected_mlp_is_initialised_as_an_mlp(concat_index):
    enn = _projected([4], 2, DIM, concat_index, name="mlp")
    features = jnp.ones((2, 6 if concat_index else 3))
    plain = hk.transform(lambda x: hk.nets.MLP([4, 6])(x))
    expected = compiled(plain.init)(key(0), features)
    for name, layer in init(enn)[0].items():
        for part, value in layer.items():
            np.testing.assert_allclose(
                value, expected[name.replace("mlp/~/mlp", "mlp")][part], atol=1e-6
            )


def test_predictions_are_linear_in_an_index_that_the_layers_do_not_see():
    enn = _projected([4], 2, DIM, concat_index=False)
    params, _ = random_params(enn, X)
    apply = compiled(lambda z: enn.apply(params, {}, X, z)[0])
    parts = [apply(z) for z in np.diag(INDEX)]
    np.testing.assert_allclose(apply(INDEX), sum(parts), rtol=1e-4, atol=1e-5)


def test_initialisers_of_a_projected_mlp():
    constant = hk.initializers.Constant
    enn = _projected([4], 2, DIM, w_init=constant(2.0), b_init=constant(3.0))
    for layer in init(enn)[0].values():
        np.testing.assert_array_equal(layer["w"], 2)
        np.testing.assert_array_equal(layer["b"], 3)


def test_attributes_of_a_projected_mlp():
    def forward(x, z):
        mlp = ProjectedMLP((4, 5), 2, DIM, concat_index=False)
        assert (list(mlp.hidden_sizes), mlp.final_out, mlp.index_dim) == ([4, 5], 2, 3)
        assert mlp.concat_index is False
        assert isinstance(mlp.mlp, hk.Module)
        return mlp(x, z)

    jax.eval_shape(hk.transform(forward).init, key(0), X, INDEX)


@pytest.mark.parametrize("concat_index", [True, False])
@pytest.mark.parametrize("hiddens", [(50,), (50, 40), ()])
def test_many_indices_share_the_input_part_and_contract_the_last_layer_first(
    hiddens, concat_index
):
    num_indices, batch, num_features, dim, num_out = 100, 32, 100, 30, 10
    enn = networks.epistemic_network_from_module(
        lambda: ProjectedMLP(hiddens, num_out, dim, concat_index),
        networks.GaussianIndexer(dim),
    )
    seen = dim if concat_index else 0
    if not hiddens:
        once, rows = 0, num_features + seen
        hidden = mlp_flops(1, seen, num_out)
    else:
        shared = hiddens[:1] if concat_index else hiddens
        once, rows = mlp_flops(batch, num_features, *shared), hiddens[-1]
        hidden = mlp_flops(1, seen, hiddens[0]) + mlp_flops(batch, *hiddens)
        hidden *= concat_index
    contraction = 2 * (rows + 1) * num_out * dim
    last = mlp_flops(batch, hiddens[-1] if hiddens else num_features, num_out)
    cost = flops_at_indices(enn, WIDE, num_indices)
    assert cost <= 1.1 * (once + num_indices * (hidden + contraction + last))


@pytest.mark.parametrize("index", [np.ones(2), np.ones((1, 3)), 1.0, np.ones(4)])
@pytest.mark.parametrize("concat_index", [True, False])
def test_a_projected_mlp_takes_indices_of_its_size(index, concat_index):
    enn = _projected([4], 2, DIM, concat_index)
    with pytest.raises(ValueError, match=r"index must have shape \[3\], got \["):
        enn.init(key(0), X, index)


@pytest.mark.parametrize("shape", [(3,), (2, 3, 1)])
@pytest.mark.parametrize("concat_index", [True, False])
def test_a_projected_mlp_takes_one_vector_an_example(shape, concat_index):
    enn = _projected([4], 2, DIM, concat_index)
    with pytest.raises(ValueError, match=r"shape \[batch, num_features\], got \["):
        enn.init(key(0), jnp.ones(shape), INDEX)


@pytest.mark.parametrize(
    ("args", "name"),
    [
        (([0], 2, 3), "hidden_sizes"),
        (([4, 1.5], 2, 3), "hidden_sizes"),
        (([4], 0, 3), "final_out"),
        (([4], 2, -1), "index_dim"),
    ],
)
def test_sizes_of_a_projected_mlp_are_positive(args, name):
    with pytest.raises(ValueError, match=f"{name} must be an integer >= 1"):
        _projected(*args).init(key(0), X, INDEX)


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
