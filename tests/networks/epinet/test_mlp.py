import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from enn import networks
from enn.networks.base import OutputWithPrior
from enn.networks.epinet import make_mlp_epinet
from tests.support import golden
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

INDEX = np.array([1.0, -2.0, 0.5], np.float32)
SHAPES = {
    "base_mlp/~/linear_0": {"w": (3, 4), "b": (4,)},
    "base_mlp/~/linear_1": {"w": (4, 2), "b": (2,)},
    "train_epinet/~/mlp/~/linear_0": {"w": (12, 5), "b": (5,)},
    "train_epinet/~/mlp/~/linear_1": {"w": (5, 6), "b": (6,)},
    "prior_epinet/~/mlp/~/linear_0": {"w": (12, 5), "b": (5,)},
    "prior_epinet/~/mlp/~/linear_1": {"w": (5, 6), "b": (6,)},
}


EPINET = make_mlp_epinet([4, 2], [5], 3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "make"),
    [
        (
            "mlp_epinet",
            lambda: make_mlp_epinet([8, 8, 3], [6, 6], index_dim=4, prior_scale=0.5),
        ),
        (
            "mlp_epinet_named",
            lambda: make_mlp_epinet(
                [8, 8, 3],
                [6],
                index_dim=2,
                expose_layers=[False, True, False],
                stop_gradient=True,
                name="net",
            ),
        ),
        # As the original does, without the gradient that the argument promises.
        (
            "mlp_epinet_named",
            lambda: make_mlp_epinet(
                [8, 8, 3], [6], 2, [False, True, False], stop_gradient=False, name="net"
            ),
        ),
    ],
)
def test_golden_values(name, make):
    golden.assert_enn_matches(name, make())


def test_documented_values():
    assert_output_starts(
        output(EPINET),
        [0.396716, 0.291614],
        prior=[0.482001, 0.017002],
    )


def test_parameter_tree():
    assert param_shapes(EPINET) == SHAPES
    named = {f"a_{module}": layer for module, layer in SHAPES.items()}
    assert param_shapes(make_mlp_epinet([4, 2], [5], 3, name="a")) == named


@pytest.mark.strict
@pytest.mark.parametrize("prior_scale", [1.0, 0.25])
def test_predictions_are_the_base_and_two_projected_mlps(prior_scale):
    enn = make_mlp_epinet([4, 2], [5], 3, prior_scale=prior_scale)
    assert enn.indexer == networks.GaussianIndexer(3)
    params, _ = random_params(enn, X)

    def parts(x, z):
        base_out = networks.ExposedMLP([4, 2], name="base_mlp")(x)
        features = base_out.extra["exposed_features"]
        train, prior = (
            networks.ProjectedMLP([5], 2, 3, name=name)(features, z)
            for name in ("train_epinet", "prior_epinet")
        )
        return base_out.train + train, prior

    transformed = hk.without_apply_rng(hk.transform(parts))
    train, prior = compiled(transformed.apply)(params, X, INDEX)
    out, state = compiled(enn.apply)(params, {}, X, INDEX)
    assert state == {}
    assert type(out) is OutputWithPrior
    assert out.extra == {}
    np.testing.assert_allclose(out.train, train, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(out.prior, prior_scale * prior, rtol=1e-5, atol=1e-6)


def test_the_mean_index_gives_the_base_network():
    params, _ = random_params(EPINET, X)
    base_mlp = hk.transform(lambda x: networks.ExposedMLP([4, 2], name="base_mlp")(x))
    out = compiled(EPINET.apply)(params, {}, X, np.zeros(3, np.float32))[0]
    expected = compiled(base_mlp.apply)(params, None, X).train
    np.testing.assert_allclose(out.preds, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("kwargs", "reaches_base"),
    [
        ({}, False),
        ({"stop_gradient": False}, False),
        ({"stop_gradient": True}, False),
        ({"gradient_to_base": True}, True),
    ],
)
def test_the_gradient_of_the_epinet_reaches_the_base_on_request(kwargs, reaches_base):
    enn = make_mlp_epinet([4, 2], [5], 3, expose_layers=[True, False], **kwargs)
    params, _ = random_params(enn, X)

    def total(params, index):
        return jnp.sum(enn.apply(params, {}, X, index)[0].preds)

    grad = compiled(jax.grad(total))
    grads, base_grads = (
        grad(params, index)["base_mlp/~/linear_0"]["w"] for index in (INDEX, 0 * INDEX)
    )
    assert np.allclose(grads, base_grads, atol=1e-6) != reaches_base


def test_no_gradient_reaches_the_prior():
    def total(params):
        return jnp.sum(EPINET.apply(params, {}, X, INDEX)[0].preds ** 2)

    grads = compiled(jax.grad(total))(init(EPINET)[0])
    for name, layer in grads.items():
        is_prior = name.startswith("prior_epinet")
        assert np.any(layer["w"] != 0) != is_prior


def test_gradient_to_base_changes_no_prediction():
    expected = output(EPINET)
    out = output(make_mlp_epinet([4, 2], [5], 3, gradient_to_base=True))
    np.testing.assert_allclose(out.preds, expected.preds, rtol=1e-6)


def test_stop_gradient_and_gradient_to_base_exclude_each_other():
    with pytest.raises(ValueError, match="exclude each other"):
        make_mlp_epinet([4, 2], [5], 3, stop_gradient=True, gradient_to_base=True)


@pytest.mark.slow
def test_the_prior_may_have_hidden_layers_of_its_own():
    enn = make_mlp_epinet([4, 2], [5], 3, prior_epinet_hiddens=[7, 6])
    tree = param_shapes(enn)
    widths = [tree[f"prior_epinet/~/mlp/~/linear_{i}"]["w"] for i in range(3)]
    assert widths == [(12, 7), (7, 6), (6, 6)]
    assert tree["train_epinet/~/mlp/~/linear_0"]["w"] == (12, 5)
    out = output(enn)
    assert out.prior.shape == (2, 2)
    np.testing.assert_allclose(out.train, output(EPINET).train, rtol=1e-5, atol=1e-6)


def test_w_init_is_the_initialiser_of_all_weights():
    enn = make_mlp_epinet([4, 2], [5], 3, w_init=hk.initializers.Constant(0.5))
    for layer in init(enn)[0].values():
        np.testing.assert_array_equal(layer["w"], 0.5)
        np.testing.assert_array_equal(layer["b"], 0)


def test_inputs_of_any_rank_are_flattened():
    images = np.random.default_rng(1).normal(size=(2, 3, 2, 1)).astype(np.float32)
    params, _ = random_params(EPINET, images)
    assert params["base_mlp/~/linear_0"]["w"].shape == (6, 4)
    apply = compiled(EPINET.apply)
    out = apply(params, {}, images, INDEX)[0]
    flat = apply(params, {}, images.reshape(2, 6), INDEX)[0]
    np.testing.assert_allclose(out.preds, flat.preds, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float64, np.int64, np.uint8])
def test_numpy_inputs_of_any_dtype_count_as_float32(dtype):
    x = np.array([[0, 1, 2], [3, 4, 5]]).astype(dtype)
    params, _ = EPINET.init(key(0), x, INDEX)
    out = EPINET.apply(params, {}, x, INDEX)[0].preds
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(params)}
    assert dtypes == {out.dtype} == {np.dtype(np.float32)}
    expected = compiled(EPINET.apply)(params, {}, x.astype(np.float32), INDEX)[0].preds
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (([], [5], 3), "output_sizes must hold at least one"),
        (([4, 0], [5], 3), "output_sizes must be an integer >= 1, got 0"),
        (([4, 2], [-1], 3), "epinet_hiddens must be an integer >= 1, got -1"),
        (([4, 2], [5], 0), "index_dim must be an integer >= 1, got 0"),
        (([4, 2], [5], 3, [True]), "one entry for each of the 2 layers, got 1"),
    ],
)
def test_wrong_sizes_are_refused(args, message):
    with pytest.raises(ValueError, match=message):
        make_mlp_epinet(*args).init(key(0), X, INDEX)


@pytest.mark.parametrize("index", [np.ones(2), 1, np.ones((3, 1))])
def test_indices_of_another_shape_are_refused(index):
    with pytest.raises(ValueError, match=r"index must have shape \[3\]"):
        EPINET.init(key(0), X, index)


def test_inputs_of_another_size_are_refused():
    params, _ = random_params(EPINET, X)
    with pytest.raises(ValueError, match="retrieved shape"):
        EPINET.apply(params, {}, jnp.ones((2, 4)), INDEX)
    for shape in [(3,), ()]:
        with pytest.raises(ValueError, match=r"inputs must have shape \[batch"):
            EPINET.apply(params, {}, jnp.ones(shape), INDEX)


@pytest.mark.parametrize("epinet_hiddens", [(50,), (50, 40)])
def test_many_indices_compute_what_does_not_depend_on_them_once(epinet_hiddens):
    num_indices, batch, num_features, dim, num_out = 100, 32, 60, 20, 10
    x = jnp.ones((batch, num_features))
    enn = make_mlp_epinet([50, num_out], epinet_hiddens, dim)
    seen = num_features + 50 + num_out
    first, last = epinet_hiddens[0], epinet_hiddens[-1]
    once = mlp_flops(batch, num_features, 50, num_out)
    once += 2 * mlp_flops(batch, seen, first)
    an_index = 2 * (
        mlp_flops(1, dim, first)
        + mlp_flops(batch, *epinet_hiddens)
        + 2 * (last + 1) * num_out * dim
        + mlp_flops(batch, last, num_out)
    )
    assert flops_at_indices(enn, x, num_indices) <= 1.1 * (
        once + num_indices * an_index
    )
