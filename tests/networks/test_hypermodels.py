import functools

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from enn.networks import hypermodels
from enn.networks.indexers import (
    EnsembleIndexer,
    GaussianIndexer,
    ScaledGaussianIndexer,
)
from tests.support import golden
from tests.support.cost import flops_at_indices, mlp_flops
from tests.support.fast import (
    X,
    assert_output_starts,
    compiled,
    key,
    output,
    param_shapes,
    random_params,
)

INDEXER = ScaledGaussianIndexer(3)


def _transform(fn):
    return hk.without_apply_rng(hk.transform(fn))


def _base(sizes):
    return _transform(lambda x: hk.nets.MLP(sizes)(x))


BASE = _base([4, 2])


@functools.cache
def _hyper_prior(sizes=(4, 2), shape=X.shape, **options):
    return hypermodels.MLPHypermodelWithHypermodelPrior(
        sizes, 0.7, jnp.ones(shape), INDEXER, [3, 2], [5], [6], **options
    )


@functools.cache
def _independent_prior(sizes=(4, 2), shape=X.shape, **options):
    return hypermodels.MLPHypermodelPriorIndependentLayers(
        sizes, 0.7, jnp.ones(shape), INDEXER, [3, 2], [5], **options
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "make"),
    [
        (
            "hypermodel",
            lambda x: hypermodels.MLPHypermodel(
                _base([6, 2]), x, GaussianIndexer(3), hidden_sizes=[4]
            ),
        ),
        (
            "hypermodel_linear_params",
            lambda x: hypermodels.MLPHypermodel(
                _base([6, 2]),
                x,
                ScaledGaussianIndexer(3),
                return_generated_params=True,
                scale=False,
            ),
        ),
        (
            "hypermodel_hyper_prior",
            lambda x: hypermodels.MLPHypermodelWithHypermodelPrior(
                [6, 2],
                0.5,
                x,
                GaussianIndexer(4),
                [5, 2],
                hyper_hidden_sizes=[3],
                prior_hyper_hidden_sizes=[3],
                seed=2,
            ),
        ),
        (
            "hypermodel_independent_prior",
            lambda x: hypermodels.MLPHypermodelPriorIndependentLayers(
                [6, 2],
                0.5,
                x,
                ScaledGaussianIndexer(6),
                [5, 5, 2],
                prior_weight_scaling=2.0,
                prior_bias_scaling=0.5,
                prior_fixed_bias_val=0.1,
                problem_temperature=0.3,
            ),
        ),
    ],
)
def test_golden_values(name, make):
    golden.assert_enn_matches(name, make(golden.X5))


@pytest.mark.slow
def test_anchors_without_prior():
    expected = {
        None: [0.146922, -0.728887],
        (): [0.146922, -0.728887],
        (5,): [-1.218823, -1.315507],
    }

    @compiled
    def outputs(init_key, index):
        enns = (hypermodels.MLPHypermodel(BASE, X, INDEXER, size) for size in expected)
        return [enn.apply(*enn.init(init_key, X, index), X, index)[0] for enn in enns]

    outs = outputs(key(0), INDEXER(key(3)))
    for out, preds in zip(outs, expected.values(), strict=True):
        assert_output_starts(out, preds)


@pytest.mark.parametrize(
    ("make", "preds", "prior"),
    [
        (_hyper_prior, [-2.127183, -2.467521], [-0.908360, -1.152014]),
        (_independent_prior, [-1.373411, -1.470095], [-0.154588, -0.154588]),
    ],
)
def test_anchors_with_prior(make, preds, prior):
    assert_output_starts(output(make()), preds, prior)


@pytest.mark.parametrize(
    ("make", "width", "torso"),
    [
        (lambda: hypermodels.MLPHypermodel(BASE, X, INDEXER), 3, {}),
        (_hyper_prior, 5, {"mlp/~/linear_0": (3, 5)}),
        (_independent_prior, 5, {"mlp/~/linear_0": (3, 5)}),
    ],
)
def test_parameter_tree_has_a_linear_layer_for_every_leaf(make, width, torso):
    leaves = {"linear": 4, "linear_1": 12, "linear_2": 2, "linear_3": 8}
    weights = torso | {name: (width, size) for name, size in leaves.items()}
    assert param_shapes(make()) == {
        f"hyper_fn/{name}": {"w": shape, "b": shape[1:]}
        for name, shape in weights.items()
    }


@pytest.mark.strict
@pytest.mark.parametrize("scale", [True, False])
def test_generated_parameters_are_those_that_the_base_uses(scale):
    enn = hypermodels.MLPHypermodel(
        BASE, X, INDEXER, [5], return_generated_params=True, scale=scale
    )
    index = enn.indexer(key(2))
    params, state = random_params(enn, X)
    out, _ = compiled(enn.apply)(params, state, X, index)
    torso = params["hyper_fn/mlp/~/linear_0"]
    hidden = index @ torso["w"] + torso["b"]
    np.testing.assert_allclose(out.extra["hyper_index"], hidden, rtol=1e-5, atol=1e-6)
    layer = params["hyper_fn/linear_3"]
    generated = out.extra["hyper_net_out"]["mlp/~/linear_1"]["w"]
    expected = (hidden @ layer["w"] + layer["b"]).reshape(4, 2)
    np.testing.assert_allclose(generated, expected, rtol=1e-5, atol=1e-6)
    used = out.extra["base_net_params"]
    np.testing.assert_allclose(
        used["mlp/~/linear_1"]["w"], generated / (2 if scale else 1), rtol=1e-5
    )
    np.testing.assert_array_equal(
        used["mlp/~/linear_1"]["b"], out.extra["hyper_net_out"]["mlp/~/linear_1"]["b"]
    )
    np.testing.assert_allclose(out.preds, compiled(BASE.apply)(used, X), rtol=1e-5)


def test_initialisers_reach_the_hidden_layers():
    options = {
        "w_init": hk.initializers.Constant(0.5),
        "b_init": hk.initializers.Constant(2.0),
    }

    @compiled
    def torsos(init_key, index):
        makers = (_hyper_prior.__wrapped__, _independent_prior.__wrapped__)
        params = [make(**options).init(init_key, X, index)[0] for make in makers]
        return [p["hyper_fn/mlp/~/linear_0"] for p in params]

    for torso in torsos(key(0), INDEXER(key(3))):
        np.testing.assert_array_equal(torso["w"], 0.5)
        np.testing.assert_array_equal(torso["b"], 2)


@pytest.mark.parametrize("make", [_hyper_prior, _independent_prior])
def test_inputs_are_flattened(make):
    images = np.random.default_rng(1).normal(size=(2, 1, 3)).astype(np.float32)
    index = np.array([0.5, -1, 2], np.float32)
    outs = []
    for inputs, enn in ((images, make(shape=images.shape)), (images[:, 0], make())):
        params, state = random_params(enn, inputs)
        outs.append(compiled(enn.apply)(params, state, inputs, index)[0])
    assert outs[0].preds.shape == (2, 2)
    np.testing.assert_array_equal(outs[0].train, outs[1].train)
    np.testing.assert_array_equal(outs[0].prior, outs[1].prior)


@functools.cache
def _at_random(enn):
    return compiled(enn.apply)(*random_params(enn, X), X, INDEXER(key(3)))[0]


def test_temperature_divides_network_and_prior():
    warm, cold = (
        _at_random(_independent_prior(**options))
        for options in ({}, {"problem_temperature": 0.1})
    )
    np.testing.assert_allclose(cold.train, 10 * warm.train, rtol=1e-5)
    np.testing.assert_allclose(cold.prior, 10 * warm.prior, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("make", [_hyper_prior, _independent_prior])
def test_generated_parameters_come_beside_the_prior(make):
    out = _at_random(make(return_generated_params=True))
    assert set(out.extra) == {"hyper_net_out", "base_net_params", "hyper_index"}
    np.testing.assert_allclose(out.prior, _at_random(make()).prior, rtol=1e-6)


class TestHyperLinear:
    def _layer(self, **options):
        return _transform(lambda x, z: hypermodels.HyperLinear(4, 3, **options)(x, z))

    def test_tree(self):
        params = jax.eval_shape(self._layer().init, key(0), X, jnp.ones(3))
        shapes = {"hyper_linear": {"w": (4, 3, 3), "b": (4, 3)}}
        assert jax.tree.map(jnp.shape, params) == shapes

    @pytest.mark.strict
    @pytest.mark.parametrize("first_layer", [True, False])
    def test_output_is_linear_in_unit_vectors(self, first_layer):
        layer = self._layer(
            weight_scaling=2.0,
            bias_scaling=0.5,
            fixed_bias_val=0.3,
            first_layer=first_layer,
        )
        rng = np.random.default_rng(0)
        params = {"hyper_linear": {"w": rng.normal(size=(4, 3, 3))}}
        params["hyper_linear"]["b"] = rng.normal(size=(4, 3))
        params = jax.tree.map(np.float32, params)
        z = np.array([0.5, -1.0, 2.0], np.float32)
        w, b = (np.asarray(params["hyper_linear"][name]) for name in "wb")
        expected = np.zeros((2, 4))
        for i in range(2):
            for o in range(4):
                bias = np.sqrt(0.5) * b[o] / np.linalg.norm(b[o]) + 0.3
                expected[i, o] = bias @ z
                for h in range(3):
                    unit = w[o, h] / np.linalg.norm(w[o, h])
                    scale = np.sqrt(2.0 if first_layer else 2.0 / 3)
                    expected[i, o] += X[i, h] * scale * (unit @ z)
        out = compiled(layer.apply)(params, X, z)
        np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize(
        ("x_shape", "z_shape", "match"),
        [((3,), (3,), "inputs"), ((2, 3), (4,), "index"), ((2, 3), (), "index")],
    )
    def test_wrong_shapes(self, x_shape, z_shape, match):
        layer = self._layer()
        params = jax.eval_shape(layer.init, key(0), X, np.ones(3))
        with pytest.raises(ValueError, match=f"{match} must have shape"):
            jax.eval_shape(layer.apply, params, np.ones(x_shape), np.ones(z_shape))

    @pytest.mark.parametrize("sizes", [(0, 3), (4, 0)])
    def test_wrong_sizes(self, sizes):
        layer = _transform(lambda x, z: hypermodels.HyperLinear(*sizes)(x, z))
        with pytest.raises(ValueError, match="integer >= 1"):
            layer.init(key(0), X, jnp.ones(3))


class TestPriorMLPIndependentLayers:
    def _net(self, index_dim, sizes=(4, 5, 2)):
        net = _transform(
            lambda x, z: hypermodels.PriorMLPIndependentLayers(sizes, index_dim)(x, z)
        )
        shapes = jax.eval_shape(net.init, key(0), X, np.ones(index_dim))
        rng = np.random.default_rng(0)
        return net, jax.tree.map(
            lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes
        )

    @pytest.mark.parametrize(("index_dim", "parts"), [(7, (3, 2, 2)), (2, (2, 2, 2))])
    def test_tree(self, index_dim, parts):
        _, params = self._net(index_dim)
        shapes = {
            "hyper_linear": (4, 3),
            "hyper_linear_1": (5, 4),
            "hyper_linear_2": (2, 5),
        }
        assert jax.tree.map(jnp.shape, params) == {
            f"prior_independent_layers/~/{name}": {
                "w": (*shape, part),
                "b": (shape[0], part),
            }
            for (name, shape), part in zip(shapes.items(), parts, strict=True)
        }

    def test_index_parts_belong_to_layers_in_order(self):
        net, params = self._net(7)
        one = compiled(lambda z: net.apply(params, X, z))
        # An index of zeros for the last layer alone gives zero outputs.
        np.testing.assert_allclose(one(jnp.array([1.0] * 5 + [0] * 2)), 0, atol=1e-6)
        # An index of zeros before the last layer leaves the same for all inputs.
        out = one(jnp.array([0.0] * 5 + [1] * 2))
        assert np.abs(out).max() > 0.1
        np.testing.assert_allclose(out[0], out[1], rtol=1e-5)

    def test_inputs_are_flattened(self):
        net, params = self._net(7)
        z = np.arange(7, dtype=np.float32)
        apply = compiled(net.apply)
        np.testing.assert_array_equal(apply(params, X[:, None], z), apply(params, X, z))

    def test_errors(self):
        net, params = self._net(7)
        with pytest.raises(ValueError, match=r"index must have shape \[7\], got \[6\]"):
            net.apply(params, X, jnp.ones(6))
        with pytest.raises(ValueError, match="output_sizes"):
            self._net(3, sizes=())


class TestDiagonalLinear:
    def _layer(self, inputs, **options):
        layer = _transform(lambda x: hypermodels.DiagonalLinear(**options)(x))
        return layer, compiled(layer.init)(key(0), inputs)

    def test_tree_and_initial_values(self):
        _, params = self._layer(jnp.ones(4))
        assert jax.tree.map(jnp.shape, params) == {
            "diagonal_linear": {"w": (4,), "b": (4,)}
        }
        np.testing.assert_allclose(params["diagonal_linear"]["w"], -4.600165, atol=1e-5)
        _, params = self._layer(jnp.ones(5000))
        bias = params["diagonal_linear"]["b"]
        np.testing.assert_allclose(bias.std(), 0.1, rtol=0.05)

    @pytest.mark.strict
    def test_scales_by_softplus_and_shifts(self):
        w_init = hk.initializers.Constant(np.array([-1.0, 2.0], np.float32))
        inputs = jnp.array([[1.0, -1.0], [3.0, 0.5]])
        layer, params = self._layer(
            inputs, w_init=w_init, b_init_value=jnp.array([1.0, 2.0])
        )
        expected = inputs * np.log1p(np.exp([[-1.0, 2.0]])) + np.array([[1.0, 2.0]])
        np.testing.assert_allclose(layer.apply(params, inputs), expected, rtol=1e-5)
        layer, params = self._layer(inputs, with_bias=False, w_init=w_init)
        assert list(params["diagonal_linear"]) == ["w"]
        expected = expected - np.array([[1.0, 2.0]])
        np.testing.assert_allclose(layer.apply(params, inputs), expected, rtol=1e-5)

    @pytest.mark.strict
    @pytest.mark.parametrize(("w", "scale"), [(200.0, 200.0), (-30.0, np.exp(-30))])
    def test_softplus_neither_overflows_nor_underflows(self, w, scale):
        layer, _ = self._layer(jnp.ones(1), with_bias=False)

        def total(w):
            return jnp.sum(layer.apply({"diagonal_linear": {"w": w}}, jnp.ones(1)))

        value, grad = jax.value_and_grad(total)(jnp.array([w]))
        np.testing.assert_allclose(value, scale, rtol=1e-5)
        np.testing.assert_allclose(grad, 1 / (1 + np.exp(-w)), rtol=1e-5)

    def test_scalar(self):
        with pytest.raises(ValueError, match="num_features"):
            self._layer(jnp.array(1.0))


def _diagonal(**options):
    return _transform(
        lambda x, z: hypermodels.hypermodel_module(
            BASE, X, diagonal_linear_hyper=True, scale=False, **options
        )()(x, z)
    )


def test_diagonal_mode_starts_at_the_base_network():
    zeros = np.zeros(26, np.float32)

    @compiled
    def outputs(init_key, seed_key, index):
        params = net.init(init_key, X, index)
        return net.apply(params, X, index), BASE.apply(BASE.init(seed_key, X), X)

    for seed in (0, 3):
        net = _diagonal(seed=seed)
        outputs.clear_cache()
        out, expected = outputs(key(9), key(seed), zeros)
        np.testing.assert_allclose(out, expected, rtol=1e-5)


@pytest.mark.parametrize("shape", [(), (3,), (26, 1)])
def test_diagonal_mode_checks_the_size_of_the_index(shape):
    with pytest.raises(ValueError, match=r"index must have shape \[26\]"):
        _diagonal().init(key(0), X, jnp.ones(shape))


def test_indexers_of_scalars():
    enn = hypermodels.MLPHypermodel(BASE, X, EnsembleIndexer(3))
    with pytest.raises(ValueError, match=r"index must have shape \[index_dim\]"):
        enn.init(key(0), X, 1)
    with pytest.raises(ValueError, match="indexer draws"):
        hypermodels.MLPHypermodelPriorIndependentLayers(
            [4, 2], 1.0, X, EnsembleIndexer(3), [4, 2]
        )


def test_wrong_sizes():
    with pytest.raises(ValueError, match="hidden_sizes"):
        hypermodels.MLPHypermodel(BASE, X, INDEXER, [0])
    for make in (_hyper_prior, _independent_prior):
        for sizes in ((), (4, 0)):
            with pytest.raises(ValueError, match="output_sizes"):
                make(sizes)


BATCH, FEATURES, DIM, TORSO, WIDTH = 8, 10, 4, 16, 12
WIDE = jnp.ones((BATCH, FEATURES))


def _generated(num_features, width):
    """Operations of generating an MLP's parameters, and of its forward pass."""
    num_params = (num_features + 1) * width + (width + 1) * 2
    return mlp_flops(1, DIM, TORSO, num_params) + mlp_flops(
        BATCH, num_features, width, 2
    )


@pytest.mark.parametrize("return_generated_params", [True, False])
def test_parameters_are_generated_and_applied_once_for_an_index(
    return_generated_params,
):
    enn = hypermodels.MLPHypermodel(
        _base([WIDTH, 2]),
        WIDE,
        GaussianIndexer(DIM),
        [TORSO],
        return_generated_params=return_generated_params,
    )
    cost = flops_at_indices(enn, WIDE)
    assert cost <= 1.1 * 100 * _generated(FEATURES, WIDTH)


def test_hypermodel_prior_costs_what_its_own_hypermodel_does():
    enn = hypermodels.MLPHypermodelWithHypermodelPrior(
        [WIDTH, 2],
        1.0,
        WIDE,
        GaussianIndexer(DIM),
        [8, 2],
        [TORSO],
        [TORSO],
        return_generated_params=True,
    )
    bound = 100 * (_generated(FEATURES, WIDTH) + _generated(FEATURES, 8))
    assert flops_at_indices(enn, WIDE) <= 1.1 * bound


def test_weights_of_the_independent_prior_are_normalised_once():
    enn = hypermodels.MLPHypermodelPriorIndependentLayers(
        [WIDTH, 2], 1.0, WIDE, GaussianIndexer(DIM), [WIDTH, 2], [TORSO]
    )
    part = DIM // 2
    num_vectors = FEATURES * WIDTH + WIDTH * 2 + WIDTH + 2
    prior = 2 * num_vectors * part + mlp_flops(BATCH, FEATURES, WIDTH, 2)
    bound = 100 * (_generated(FEATURES, WIDTH) + prior)
    assert flops_at_indices(enn, WIDE) <= 1.1 * bound
