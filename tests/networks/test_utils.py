import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enn import networks
from enn.networks import utils
from enn.networks.base import EnnArray, EnnNoState, OutputWithPrior
from enn.networks.utils import (
    make_centered_enn,
    make_centered_enn_no_state,
    parse_net_output,
    parse_to_output_with_prior,
    scale_enn_output,
)
from tests.support import golden
from tests.support.fast import X, key

TRAIN = jnp.arange(6.0).reshape(3, 2)


class Expected(OutputWithPrior):
    """Predicts something else than `train + prior`."""

    __slots__ = ()

    @property
    def preds(self):
        return jnp.exp(self.train) + self.prior


def _network(out):
    def apply(params, state, inputs, index):
        return out, {"counter": {"calls": state["counter"]["calls"] + 1}}

    return EnnArray(apply, lambda *args: ({}, {}), networks.PrngIndexer())


def _apply(enn):
    return enn.apply({}, {"counter": {"calls": 4}}, TRAIN, None)


@pytest.mark.slow
def test_golden_values_of_scaled_and_centered_networks():
    enn = networks.MLPEnsembleMatchedPrior([4, 2], golden.X5, num_ensemble=3)
    params, state = jax.jit(enn.init)(golden.keys(0), golden.X5, 0)
    x_train = 3 * golden.normal(20, 5, seed=11) + 1
    centered = networks.make_centered_enn(enn, x_train)
    scaled = networks.scale_enn_output(enn, 2.5)
    fwd = networks.make_batch_fwd(enn, num_enn_samples=7, seed=3)
    outs = {
        name: golden.output(jax.jit(made.apply)(params, state, golden.X5, 1)[0])
        for name, made in {"centered": centered, "scaled": scaled}.items()
    }
    batch_fwd = fwd(params, state, golden.X5)
    golden.assert_matches("centered_and_scaled", outs | {"batch_fwd": batch_fwd})


def test_predictions_are_parsed_from_every_kind_of_output():
    np.testing.assert_array_equal(parse_net_output(TRAIN), TRAIN)
    np.testing.assert_array_equal(
        parse_net_output(OutputWithPrior(TRAIN, TRAIN)), 2 * TRAIN
    )
    np.testing.assert_array_equal(
        parse_net_output(Expected(TRAIN, TRAIN)), jnp.exp(TRAIN) + TRAIN
    )


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_plain_array_gets_a_zero_prior_of_its_dtype(dtype):
    out = parse_to_output_with_prior(TRAIN.astype(dtype))
    assert type(out) is OutputWithPrior
    assert out.prior.shape == (3, 2)
    assert out.prior.dtype == out.preds.dtype == dtype
    np.testing.assert_array_equal(out.prior, 0)
    assert out.extra == {}


def test_an_output_with_prior_stays_as_it_is():
    out = Expected(TRAIN, TRAIN, {"hidden": TRAIN})
    assert parse_to_output_with_prior(out) is out


def test_scaling_a_plain_output_keeps_it_plain():
    enn = _network(TRAIN)
    scaled = scale_enn_output(enn, -2.0)
    out, state = _apply(scaled)
    np.testing.assert_array_equal(out, -2 * TRAIN)
    assert state == {"counter": {"calls": 5}}
    assert (scaled.init, scaled.indexer) == (enn.init, enn.indexer)


@pytest.mark.strict
def test_scaling_multiplies_train_and_prior_but_no_extra_output():
    enn = _network(OutputWithPrior(TRAIN, 3 * TRAIN, {"hidden": TRAIN}))
    out = _apply(scale_enn_output(enn, 0.5))[0]
    np.testing.assert_array_equal(out.train, 0.5 * TRAIN)
    np.testing.assert_array_equal(out.prior, 1.5 * TRAIN)
    np.testing.assert_array_equal(out.extra["hidden"], TRAIN)


def test_scaled_outputs_of_other_types_become_plain_as_documented():
    out = _apply(scale_enn_output(_network(Expected(TRAIN, TRAIN)), 2.0))[0]
    assert type(out) is OutputWithPrior
    np.testing.assert_array_equal(out.preds, 4 * TRAIN)


def _two_outputs():
    def apply(params, state, inputs, index):
        train = inputs * params["net"]["w"]
        return OutputWithPrior(train, 2 * jnp.ones_like(train)), state

    def init(key, inputs, index):
        return {"net": {"w": jnp.float32(3)}}, {}

    return EnnArray(apply, init, networks.EnsembleIndexer(2))


def test_a_prior_is_scaled_output_by_output():
    x, params = np.ones([4, 2], np.float32), {"net": {"w": np.float32(3)}}
    out, _ = networks.scale_prior(_two_outputs(), [0.5, 0]).apply(params, {}, x, 0)
    np.testing.assert_array_equal(out.train, np.full([4, 2], 3.0))
    np.testing.assert_array_equal(out.prior, [[1.0, 0.0]] * 4)
    with pytest.raises(ValueError, match=r"have shape \[2\] of the outputs, got \[3\]"):
        networks.scale_prior(_two_outputs(), [1, 0, 0]).apply(params, {}, x, 0)


@pytest.mark.slow
def test_a_learned_scale_is_one_number_for_all_inputs_and_trains():
    enn = networks.add_learned_scale(_two_outputs(), 2, init_scale=0.3)
    x = np.ones([4, 2], np.float32)
    params, state = enn.init(golden.keys(0), x, 0)
    out, _ = enn.apply(params, state, x, 0)
    np.testing.assert_allclose(jax.nn.softplus(out.preds[:, 2:]), 0.3, rtol=1e-6)
    np.testing.assert_array_equal(out.preds[:, :2], np.full([4, 2], 5.0))
    grad = jax.grad(lambda p: enn.apply(p, state, x, 0)[0].preds[:, 3].sum())(params)
    np.testing.assert_array_equal(grad["learned_scale"]["raw"], [0, 4])
    assert grad["net"]["w"] == 0


def _no_state_apply(params, inputs, index):
    return params["w"]["w"] * inputs + index


def _init(rng_key, inputs, index):
    return {"w": {"w": jax.random.normal(rng_key, inputs.shape)}}


ENN = EnnNoState(_no_state_apply, _init, networks.EnsembleIndexer(3))
PARAMS = {"w": {"w": 2.0}}


def _batch_norm(is_training):
    def enn(is_training):
        return networks.wrap_net_fn_as_enn(
            lambda x: hk.BatchNorm(True, True, 0.9)(hk.Linear(2)(x), is_training)
        )

    # Haiku makes the state of batch normalisation in training only.
    return networks.EnnArray(
        enn(is_training).apply, enn(True).init, networks.PrngIndexer()
    )


def test_apply_without_state_ignores_the_state_and_returns_an_empty_one():
    out, state = utils.wrap_apply_no_state_as_apply(_no_state_apply)(
        PARAMS, {"a": 1}, X, 1
    )
    np.testing.assert_array_equal(out, 2 * X + 1)
    assert state == {}


def test_init_without_state_returns_an_empty_one():
    params, state = utils.wrap_init_no_state_as_init(_init)(key(0), X, 0)
    np.testing.assert_array_equal(params["w"]["w"], jax.random.normal(key(0), X.shape))
    assert state == {}


def test_a_network_without_state_is_wrapped_whole():
    enn = utils.wrap_enn_no_state_as_enn(ENN)
    assert enn.indexer is ENN.indexer
    assert jax.tree.structure(enn.init(key(0), X, 0)) == jax.tree.structure(
        ({"w": {"w": 0}}, {})
    )
    np.testing.assert_array_equal(enn.apply(PARAMS, {}, X, 2)[0], 2 * X + 2)


def test_wrapping_back_and_forth_gives_the_same_network():
    enn = utils.wrap_enn_as_enn_no_state(utils.wrap_enn_no_state_as_enn(ENN))
    assert enn.indexer is ENN.indexer
    np.testing.assert_array_equal(enn.apply(PARAMS, X, 2), 2 * X + 2)
    np.testing.assert_array_equal(
        enn.init(key(1), X, 0)["w"]["w"], _init(key(1), X, 0)["w"]["w"]
    )


@pytest.mark.parametrize("is_training", [True, False])
def test_a_state_that_nobody_gave_raises(is_training):
    enn = utils.wrap_enn_as_enn_no_state(_batch_norm(is_training))
    with pytest.raises(ValueError, match=r"has state.*batch_norm.*constant_state"):
        enn.init(key(0), X, key(1))


def test_a_state_that_would_start_anew_at_each_call_raises():
    # Once, apply took the parameters of enn.init and normalised by each batch alone.
    with_state = _batch_norm(is_training=True)
    params, _ = with_state.init(key(0), X, key(1))
    enn = utils.wrap_enn_as_enn_no_state(with_state)
    with pytest.raises(ValueError, match=r"has state.*batch_norm.*constant_state"):
        enn.apply(params, X, key(1))


def test_the_constant_state_is_the_state_of_every_forward_pass():
    with_state = _batch_norm(is_training=False)
    params, state = with_state.init(key(0), X, key(1))
    state = jax.tree.map(lambda leaf: jnp.full_like(leaf, 2), state)
    enn = utils.wrap_enn_as_enn_no_state(with_state, state)
    np.testing.assert_array_equal(enn.init(key(0), X, key(1))["linear"]["b"], [0, 0])
    expected = (X @ params["linear"]["w"] - 2) / np.sqrt(2 + 1e-5)
    for _ in range(2):
        out = enn.apply(params, X, key(1))
        np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)


def test_a_constant_empty_state_is_a_state():
    enn = utils.wrap_enn_as_enn_no_state(_batch_norm(True), {})
    params = enn.init(key(0), X, key(1))
    assert enn.apply(params, X, key(1)).shape == (2, 2)


def test_networks_without_state_run_under_jit_and_vmap():
    enn = utils.wrap_enn_no_state_as_enn(ENN)
    fwd = jax.jit(jax.vmap(enn.apply, in_axes=(None, None, None, 0)))
    out, state = fwd(PARAMS, {}, X, jnp.arange(3))
    np.testing.assert_allclose(out, np.stack([2 * X + i for i in range(3)]))
    assert state == {}


def _forward(x):
    return hk.nets.MLP([4, 2])(x)


TRANSFORMED = hk.without_apply_rng(hk.transform(_forward))


class Bilinear(networks.EpistemicModule):
    def __call__(self, inputs, index):
        calls = hk.get_state("calls", (), jnp.int32, init=jnp.zeros)
        hk.set_state("calls", calls + 1)
        w = hk.get_parameter("w", (3, 2), init=hk.initializers.RandomNormal())
        return inputs @ w @ index


def test_a_module_becomes_a_network_with_its_indexer():
    indexer = networks.GaussianIndexer(2)
    enn = utils.epistemic_network_from_module(Bilinear, indexer)
    assert enn.indexer is indexer
    index = jnp.array([1.0, -2.0])
    params, state = enn.init(key(0), X, index)
    assert jax.tree.map(jnp.shape, params) == {"bilinear": {"w": (3, 2)}}
    assert state == {"bilinear": {"calls": 0}}
    out, new_state = enn.apply(params, state, X, index)
    w = np.asarray(params["bilinear"]["w"])
    np.testing.assert_allclose(out, X @ (w[:, 0] - 2 * w[:, 1]), rtol=1e-5)
    assert new_state == {"bilinear": {"calls": 1}}


def test_init_of_a_module_uses_the_key_as_haiku_does():
    enn = utils.epistemic_network_from_module(Bilinear, networks.GaussianIndexer(2))
    params, _ = enn.init(key(5), X, jnp.ones(2))
    sub_key = next(hk.PRNGSequence(5))
    np.testing.assert_allclose(
        params["bilinear"]["w"], jax.random.normal(sub_key, (3, 2)), rtol=1e-6
    )


@pytest.mark.parametrize("index", [None, key(3), jnp.ones(7)])
@pytest.mark.parametrize(
    "enn",
    [
        utils.wrap_net_fn_as_enn(_forward),
        utils.wrap_transformed_as_enn(TRANSFORMED),
        networks.wrap_enn_no_state_as_enn(
            utils.wrap_transformed_as_enn_no_state(TRANSFORMED)
        ),
    ],
)
def test_functions_of_inputs_alone_ignore_the_index(enn, index):
    params, state = jax.jit(enn.init)(key(0), X, index)
    expected = jax.jit(TRANSFORMED.init)(key(0), X)
    jax.tree.map(np.testing.assert_array_equal, params, expected)
    assert state == {}
    out, state = jax.jit(enn.apply)(params, state, X, index)
    np.testing.assert_allclose(out, TRANSFORMED.apply(params, X), rtol=1e-5, atol=1e-6)
    assert state == {}


@pytest.mark.parametrize(
    "enn",
    [
        utils.wrap_net_fn_as_enn(_forward),
        utils.wrap_transformed_as_enn(TRANSFORMED),
        utils.wrap_transformed_as_enn_no_state(TRANSFORMED),
    ],
)
def test_the_index_of_functions_of_inputs_alone_is_the_key(enn):
    np.testing.assert_array_equal(enn.indexer(key(4)), key(4))


def test_a_function_keeps_its_state():
    def count(x):
        calls = hk.get_state("calls", (), init=jnp.ones)
        hk.set_state("calls", 2 * calls)
        return calls * x

    enn = utils.wrap_net_fn_as_enn(count)
    params, state = enn.init(key(0), X, None)
    for factor in (1, 2, 4):
        out, state = enn.apply(params, state, X, None)
        np.testing.assert_array_equal(out, factor * X)


def test_a_function_takes_any_tree_of_inputs():
    enn = utils.wrap_net_fn_as_enn(lambda inputs: inputs["x"] + inputs["y"])
    assert enn.apply({}, {}, {"x": 1, "y": 2}, None)[0] == 3


@pytest.mark.parametrize(
    "wrap",
    [utils.wrap_transformed_as_enn, utils.wrap_transformed_as_enn_no_state],
)
def test_a_transform_that_still_wants_a_key_is_explained(wrap):
    with pytest.raises(ValueError, match="without_apply_rng"):
        wrap(hk.transform(_forward))


def test_the_wrappers_are_re_exported():
    assert networks.wrap_net_fn_as_enn is utils.wrap_net_fn_as_enn
    assert networks.utils.wrap_net_fn_as_enn is utils.wrap_net_fn_as_enn


X_TRAIN = np.random.default_rng(0).normal([1, -2, 30], [1, 5, 0.1], (50, 3))


def _identity(init=None):
    def apply(params, state, inputs, index):
        return inputs, {"seen": index}

    return EnnArray(apply, init, networks.PrngIndexer())


def _centered(x_train, inputs):
    return make_centered_enn(_identity(), x_train).apply({}, {}, inputs, 7)[0]


@pytest.mark.parametrize("shape", [(3,), (5, 3), (2, 5, 3), (0, 3)])
def test_inputs_are_standardised_with_the_population_statistics(shape):
    x = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    expected = (x - X_TRAIN.mean(0)) / X_TRAIN.std(0, ddof=0)
    out = _centered(X_TRAIN, x)
    assert out.shape == shape
    np.testing.assert_allclose(out, expected, rtol=1e-3, atol=1e-3)


@settings(deadline=None, max_examples=20)
@given(
    st.lists(st.floats(0.1, 10), min_size=3, max_size=3),
    st.lists(st.floats(-10, 10), min_size=3, max_size=3),
)
def test_scaling_and_shifting_the_data_changes_nothing(scale, shift):
    x_train = X_TRAIN[:, [0, 1, 0]]
    changed = x_train * scale + shift
    np.testing.assert_allclose(
        _centered(changed, changed[:4]), _centered(x_train, x_train[:4]), atol=2e-2
    )


def test_statistics_of_images_are_per_pixel():
    x_train = np.random.default_rng(1).normal(size=(9, 2, 2, 1))
    expected = (x_train - x_train.mean(0)) / x_train.std(0)
    np.testing.assert_allclose(_centered(x_train, x_train), expected, atol=1e-5)


def test_a_constant_feature_is_divided_by_1e_9_as_documented():
    x_train = np.array([[1.0, 0.0], [1.0, 2.0]], np.float32)
    out = _centered(x_train, np.array([[2.0, 0.0]], np.float32))
    np.testing.assert_allclose(out, [[1e9, -1.0]], rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.int32, np.uint8, np.float64])
def test_training_inputs_of_any_dtype_give_float32(dtype):
    x_train = np.array([[0, 2], [4, 2], [5, 5]], dtype)
    inputs = np.array([[3, 3]], np.float32)
    expected = (inputs - [3, 3]) / [np.std([0, 4, 5]), np.std([2, 2, 5])]
    out = _centered(x_train, inputs)
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, expected, atol=1e-6)


def test_init_gets_the_raw_inputs_and_the_rest_is_kept():
    init, x = object(), jnp.ones((2, 3))
    enn = _identity(init)
    centered = make_centered_enn(enn, X_TRAIN)
    assert (centered.init, centered.indexer) == (init, enn.indexer)
    assert centered.apply({}, {}, x, 7)[1] == {"seen": 7}


def test_networks_without_state_are_centered_alike():
    def apply(params, inputs, index):
        return params * inputs + index

    enn = EnnNoState(apply, object(), networks.PrngIndexer())
    centered = make_centered_enn_no_state(enn, X_TRAIN)
    x = jnp.ones((2, 3))
    expected = 2 * _centered(X_TRAIN, x) + 1
    np.testing.assert_allclose(jax.jit(centered.apply)(2.0, x, 1.0), expected)
    assert (centered.init, centered.indexer) == (enn.init, enn.indexer)


@pytest.mark.parametrize("make", [make_centered_enn, make_centered_enn_no_state])
@pytest.mark.parametrize("x_train", [np.ones(3), np.float32(2)])
def test_training_inputs_without_features_are_refused(make, x_train):
    with pytest.raises(ValueError, match=r"x_train must have shape \[num_data, ...\]"):
        make(_identity(), x_train)


def test_inputs_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"shape \[3\], got shape \[2, 4\]"):
        _centered(X_TRAIN, jnp.ones((2, 4)))
