import functools

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from enn import networks
from enn.networks import ensembles
from enn.networks.base import EnnNoState, OutputWithPrior
from tests.support import golden
from tests.support.cost import flops, flops_at_indices, mlp_flops
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

WIDE = jnp.ones((64, 32))
MLP_SHAPES = {
    "mlp/~/linear_0": {"b": (3, 4), "w": (3, 3, 4)},
    "mlp/~/linear_1": {"b": (3, 2), "w": (3, 4, 2)},
}


def _transformed(forward):
    return hk.without_apply_rng(hk.transform(forward))


def _transformed_with_state(forward):
    return hk.without_apply_rng(hk.transform_with_state(forward))


MLP = _transformed(lambda x: hk.nets.MLP([4, 2])(x))


def _batch_norm_net(x):
    x = hk.BatchNorm(True, True, 0.5)(hk.Linear(8)(x), is_training=True)
    return hk.Linear(2)(jax.nn.relu(x))


BATCH_NORM = _transformed_with_state(_batch_norm_net)


def _ensemble(num_ensemble=3):
    return networks.wrap_enn_no_state_as_enn(networks.Ensemble(MLP, num_ensemble))


def _ensemble_with_state(num_ensemble=3):
    return networks.EnsembleWithState(hk.with_empty_state(MLP), num_ensemble)


def _lazy(**kwargs):
    return networks.MLPEnsembleMatchedPrior([4, 2], num_ensemble=3, **kwargs)


def _member(tree, index):
    return jax.tree.map(lambda leaf: leaf[index], tree)


def _apply(enn):
    """`(params, inputs, index) -> output` of a network without state."""
    return lambda params, inputs, index: enn.apply(params, {}, inputs, index)[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "make"),
    [
        (
            "ensemble_matched_prior",
            lambda: networks.MLPEnsembleMatchedPrior(
                [8, 8, 3], golden.X5, num_ensemble=4, prior_scale=2.0, seed=3
            ),
        ),
        (
            "ensemble_matched_prior",
            lambda: networks.MLPEnsembleMatchedPrior(
                [8, 8, 3], num_ensemble=4, prior_scale=2.0, seed=3
            ),
        ),
        (
            "ensemble_matched_prior_inits",
            lambda: networks.MLPEnsembleMatchedPrior(
                [6, 2],
                dummy_input=golden.X5,
                num_ensemble=3,
                w_init=hk.initializers.RandomNormal(0.5),
                b_init=hk.initializers.Constant(0.1),
            ),
        ),
    ],
)
def test_golden_values(name, make):
    golden.assert_enn_matches(name, make())


@pytest.mark.parametrize("make", [_ensemble, _ensemble_with_state])
def test_documented_values_of_ensembles(make):
    assert_output_starts(output(make(), 1), [-0.049627, 0.164839])


@pytest.mark.parametrize("dummy_input", [X, None])
def test_documented_values_of_the_matched_prior(dummy_input):
    enn = networks.MLPEnsembleMatchedPrior([4, 2], dummy_input, 3)
    assert_output_starts(
        output(enn, 1), [0.016794, 0.107465], prior=[0.066421, -0.057374]
    )


@pytest.mark.parametrize("make", [_ensemble, _ensemble_with_state, _lazy])
def test_parameter_tree(make):
    assert param_shapes(make()) == MLP_SHAPES


@pytest.mark.parametrize("make", [_ensemble, _ensemble_with_state, _lazy])
def test_members_have_the_parameters_of_split_keys(make):
    params, _ = init(make(), seed=5)
    keys = jax.random.split(key(5), 3)
    for i in range(3):
        expected = compiled(MLP.init)(keys[i], X)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
            _member(params, i),
            expected,
        )


def test_ensembles_have_their_attributes_and_indexer():
    for enn in (networks.Ensemble(MLP, 3), networks.EnsembleWithState(BATCH_NORM, 3)):
        assert enn.num_ensemble == 3
        assert enn.indexer == networks.EnsembleIndexer(3)
    assert networks.Ensemble(MLP, 3).model is MLP
    assert networks.EnsembleWithState(BATCH_NORM, 3).model is BATCH_NORM
    assert isinstance(networks.Ensemble(MLP, 3), EnnNoState)


def test_members_that_are_not_selected_do_not_matter():
    # A one-hot selection would spread the NaN of one member to all.
    enn = networks.Ensemble(MLP, 3)
    params = jax.tree.map(
        lambda leaf: leaf.at[0].set(jnp.nan), compiled(enn.init)(key(0), X, 0)
    )
    apply = compiled(enn.apply)
    assert np.isnan(apply(params, X, 0)).all()
    expected = compiled(MLP.apply)(_member(params, 2), X)
    np.testing.assert_allclose(apply(params, X, 2), expected, rtol=1e-5, atol=1e-6)


def test_a_forward_pass_updates_the_state_of_its_member_only():
    enn = networks.EnsembleWithState(BATCH_NORM, 3)
    x = np.random.default_rng(1).normal(size=(6, 4)).astype(np.float32)
    params, state = random_params(enn, x)
    out, new_state = compiled(enn.apply)(params, state, x, 1)
    member_out, member_state = compiled(BATCH_NORM.apply)(
        _member(params, 1), _member(state, 1), x
    )
    np.testing.assert_allclose(out, member_out, rtol=1e-4, atol=1e-5)
    for i in range(3):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
            _member(new_state, i),
            member_state if i == 1 else _member(state, i),
        )
    counters = new_state["batch_norm/~/mean_ema"]["counter"]
    assert counters.dtype == jnp.int32
    np.testing.assert_array_equal(counters, [0, 1, 0])


@pytest.mark.strict
@pytest.mark.parametrize("num_indices", [2, 5])
def test_each_index_returns_a_state_with_its_member_updated(num_indices):
    enn = networks.EnsembleWithState(BATCH_NORM, 3)
    x = np.random.default_rng(1).normal(size=(6, 4)).astype(np.float32)
    params, state = random_params(enn, x)
    indices = np.array([2, 0, 1, 2, 0])[:num_indices]
    over_indices = jax.vmap(enn.apply, in_axes=(None, None, None, 0))
    outs, states = compiled(over_indices)(params, state, x, indices)
    counters = states["batch_norm/~/mean_ema"]["counter"]
    np.testing.assert_array_equal(counters, np.eye(3, dtype=int)[indices])
    one = compiled(enn.apply)
    for i, index in enumerate(indices):
        expected = one(params, state, x, index)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
            (outs[i], _member(states, i)),
            expected,
        )


def test_the_prior_of_a_member_is_a_network_of_its_own():
    enn = networks.MLPEnsembleMatchedPrior([4, 2], X, 3, 2.0, seed=7)
    params, _ = random_params(enn, X)
    fns = networks.make_mlp_ensemble_prior_fns([4, 2], X, 3, seed=7)
    for i in range(3):
        out = compiled(_apply(enn))(params, X, i)
        train = compiled(MLP.apply)(_member(params, i), X)
        np.testing.assert_allclose(out.train, train, rtol=1e-5, atol=1e-6)
        prior = 2 * compiled(fns[i])(X)
        np.testing.assert_allclose(out.prior, prior, rtol=1e-5, atol=1e-6)
    assert type(out) is OutputWithPrior
    assert out.extra == {}


def test_priors_keep_the_default_initialisers():
    inits = {
        "w_init": hk.initializers.Constant(0.5),
        "b_init": hk.initializers.Constant(0.1),
    }
    enn, plain = _lazy(**inits), _lazy()
    params, _ = init(enn)
    np.testing.assert_array_equal(params["mlp/~/linear_0"]["w"], 0.5)
    np.testing.assert_array_equal(params["mlp/~/linear_1"]["b"], np.float32(0.1))
    prior = compiled(_apply(enn))(params, X, 1).prior
    np.testing.assert_array_equal(
        prior, compiled(_apply(plain))(init(plain)[0], X, 1).prior
    )


def test_prior_and_parameters_of_one_seed_coincide_as_documented():
    enn = _lazy(seed=5)
    params, _ = init(enn, seed=5)
    train, prior = (compiled(_apply(enn))(params, X, index)[:2] for index in (1, 0))
    np.testing.assert_allclose(train[0], prior[1], rtol=1e-5, atol=1e-6)


IMAGES = np.random.default_rng(0).normal(size=(2, 3, 2, 1)).astype(np.float32)


def test_inputs_are_flattened():
    enn = _lazy()
    params, _ = random_params(enn, IMAGES)
    assert params["mlp/~/linear_0"]["w"].shape == (3, 6, 4)
    apply = compiled(_apply(enn))
    out = apply(params, IMAGES, 1)
    flat = apply(params, IMAGES.reshape(2, 6), 1)
    np.testing.assert_allclose(out.preds, flat.preds, rtol=1e-5, atol=1e-6)


FIRST_SEEN = {
    "eager": lambda apply, p: apply(p, X, 1),
    "jit": lambda apply, p: compiled(apply)(p, X, 1),
    "vmap over indices": lambda apply, p: _member(
        jax.vmap(apply, in_axes=(None, None, 0))(p, X, jnp.arange(3)), 1
    ),
    "vmap over batches": lambda apply, p: _member(
        jax.vmap(apply, in_axes=(None, 0, None))(p, X[None], 1), 0
    ),
    "vmap over examples": lambda apply, p: jax.vmap(apply, in_axes=(None, 0, None))(
        p, X, 1
    ),
    "grad": lambda apply, p: jax.grad(
        lambda x: (jnp.sum(apply(p, x, 1).preds), apply(p, x, 1)), has_aux=True
    )(X)[1],
    "scan": lambda apply, p: _member(
        jax.lax.scan(lambda c, z: (c, apply(p, X, z)), 0, jnp.arange(3))[1], 1
    ),
    "scan over batches": lambda apply, p: _member(
        jax.jit(lambda xs: jax.lax.scan(lambda c, x: (c, apply(p, x, 1)), 0, xs))(
            X[None]
        )[1],
        0,
    ),
    "checkpoint": lambda apply, p: jax.checkpoint(apply)(p, X, 1),
    "eval_shape": lambda apply, p: [
        jax.eval_shape(apply, p, X, 1),
        compiled(apply)(p, X, 1),
    ][1],
}


@pytest.fixture(scope="module")
def known():
    """A network that was given its input shape, its parameters and its output."""
    enn = networks.MLPEnsembleMatchedPrior([4, 2], X, 3)
    params, _ = random_params(enn, X)
    return enn, params, compiled(_apply(enn))(params, X, 1)


def _assert_equal_outputs(out, expected):
    np.testing.assert_allclose(out.prior, expected.prior, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(out.train, expected.train, rtol=1e-5, atol=1e-6)


@pytest.mark.strict
@pytest.mark.parametrize("first_seen", FIRST_SEEN.values(), ids=FIRST_SEEN)
def test_priors_are_drawn_alike_wherever_the_first_input_is_seen(first_seen, known):
    _, params, expected = known
    apply = _apply(_lazy())
    _assert_equal_outputs(first_seen(apply, params), expected)
    _assert_equal_outputs(compiled(apply)(params, X, 1), expected)


@pytest.mark.slow
def test_drawing_priors_inside_jit_leaks_no_tracer(known):
    _, params, expected = known
    with jax.checking_leaks():
        _assert_equal_outputs(jax.jit(_apply(_lazy()))(params, X, 1), expected)


@pytest.mark.parametrize("dtype", [np.float64, np.int64, np.uint8])
def test_numpy_inputs_of_any_dtype_count_as_float32(dtype, known):
    x = np.array([[0, 1, 2], [3, 4, 5]]).astype(dtype)
    enn, params, _ = known
    expected = compiled(_apply(enn))(params, x.astype(np.float32), 1).preds
    lazy = _lazy()
    init_params, _ = lazy.init(key(0), x, 0)
    out = lazy.apply(params, {}, x, 1)[0].preds
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(init_params)}
    assert dtypes == {out.dtype} == {np.dtype(np.float32)}
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dummy_input", [X, None])
def test_inputs_of_another_size_than_the_first_are_refused(dummy_input):
    enn = networks.MLPEnsembleMatchedPrior([4, 2], dummy_input, 3)
    params, _ = random_params(enn, X)
    other = jnp.ones((2, 5))
    for fn in (_apply(enn), jax.jit(_apply(enn)), lambda p, x, z: init(enn, x, z)):
        with pytest.raises(ValueError, match=r"of 3 features, got shape \[2, 5\]"):
            fn(params, other, 0)
    assert compiled(_apply(enn))(params, X, 1).prior.shape == (2, 2)


def test_scalar_inputs_are_refused():
    with pytest.raises(ValueError, match=r"inputs must have shape \[batch, \.\.\.\]"):
        _lazy().init(key(0), jnp.float32(1), 0)


@pytest.mark.parametrize("make", [_ensemble, _ensemble_with_state, _lazy])
@pytest.mark.parametrize("index", [-1, 3, 1.0, key(0)])
def test_indices_out_of_range_or_of_another_type_are_refused(make, index):
    enn = make()
    params, state = random_params(enn, X)
    with pytest.raises(ValueError, match="index"):
        enn.apply(params, state, X, index)


@pytest.mark.parametrize("make", [_ensemble, _lazy])
def test_an_index_out_of_range_inside_jit_gives_nan(make):
    enn = make()
    params, state = random_params(enn, X)
    apply = jax.jit(enn.apply)
    out = networks.parse_net_output(apply(params, state, X, 3)[0])
    assert np.isnan(out).all()
    last, wrapped = (
        networks.parse_net_output(apply(params, state, X, index)[0])
        for index in (2, -1)
    )
    np.testing.assert_array_equal(wrapped, last)


@pytest.mark.parametrize("num_members", [1, 5])
@pytest.mark.parametrize("num_indices", [1, 4])
def test_parameters_of_an_ensemble_of_another_size_are_refused(
    num_members, num_indices
):
    # Once, they passed, and members that were not there gave NaN.
    params, state = random_params(_ensemble(num_members), X)
    apply = jax.vmap(_ensemble_with_state(3).apply, (None, None, None, 0))
    shape = rf"'mlp/~/linear_0/w' with retrieved shape \({num_members}, 3, 4\)"
    with pytest.raises(ValueError, match=shape):
        jax.eval_shape(apply, params, state, X, jnp.arange(num_indices))


def test_an_index_out_of_range_inside_jit_writes_no_state():
    enn = networks.EnsembleWithState(BATCH_NORM, 3)
    params, state = random_params(enn, X)
    new_state = compiled(enn.apply)(params, state, X, 3)[1]
    jax.tree.map(np.testing.assert_array_equal, new_state, state)


@pytest.mark.parametrize("num_ensemble", [0, -1, 2.0, None, True])
@pytest.mark.parametrize(
    "make",
    [
        lambda k: networks.Ensemble(MLP, k),
        lambda k: networks.EnsembleWithState(BATCH_NORM, k),
        lambda k: networks.MLPEnsembleMatchedPrior([2], X, k),
        lambda k: networks.make_mlp_ensemble_prior_fns([2], X, k),
        lambda k: ensembles.make_random_gp_ensemble_prior_fns(3, 2, 4, 1.0, k),
    ],
)
def test_ensembles_of_less_than_one_member_are_refused(make, num_ensemble):
    with pytest.raises(ValueError, match="num_ensemble must be an integer >= 1"):
        make(num_ensemble)


@pytest.mark.parametrize("sizes", [[0], [4, -2], [2.5], []])
@pytest.mark.parametrize(
    "make",
    [
        lambda sizes: networks.MLPEnsembleMatchedPrior(sizes, num_ensemble=3),
        lambda sizes: networks.make_mlp_ensemble_prior_fns(sizes, X, 3),
    ],
)
def test_layer_sizes_below_one_are_refused(make, sizes):
    with pytest.raises(ValueError, match="output_sizes must"):
        make(sizes)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_ensemble", "num_indices"), [(1, 3), (4, 3), (4, 40), (10, 3)]
)
def test_many_indices_cost_each_member_and_its_prior_at_most_once(
    num_ensemble, num_indices
):
    enn = networks.MLPEnsembleMatchedPrior([48, 10], WIDE, num_ensemble)
    member_and_prior = 2 * mlp_flops(64, 32, 48, 10)
    runs = min(num_indices, num_ensemble)
    # One sum, one scaling, and for each of two outputs the test that picks NaN.
    picking = 6 * num_indices * 64 * 10
    cost = flops_at_indices(enn, WIDE, num_indices)
    assert cost <= 1.1 * runs * member_and_prior + picking


@pytest.mark.parametrize("num_indices", [3, 40])
def test_ensembles_of_any_network_run_a_member_at_most_once(num_indices):
    def forward(x):
        x = hk.BatchNorm(True, True, 0.5)(hk.Linear(48)(x), is_training=True)
        return hk.Linear(10)(jax.nn.relu(x))

    model = _transformed_with_state(forward)
    enn = networks.EnsembleWithState(model, 4)
    member = jax.eval_shape(model.init, key(0), WIDE)
    one = flops(model.apply, *member, WIDE)
    picking = 3 * num_indices * 64 * 10
    cost = flops_at_indices(enn, WIDE, num_indices)
    assert cost <= 1.1 * min(num_indices, 4) * one + picking

    over_indices = jax.vmap(enn.apply, in_axes=(None, None, None, 0))
    params, state = jax.eval_shape(enn.init, key(0), WIDE, 0)
    with_states = flops(over_indices, params, state, WIDE, jnp.zeros(num_indices, int))
    num_states = sum(leaf.size for leaf in jax.tree.leaves(state))
    assert with_states <= 1.1 * min(num_indices, 4) * one + picking + (
        5 * num_indices * num_states
    )


@pytest.mark.slow
def test_priors_do_not_depend_on_their_number_under_another_generator():
    with jax.default_prng_impl("rbg"):
        two, three = (
            ensembles.make_mlp_ensemble_prior_fns([4, 2], X, num, seed=5)
            for num in (2, 3)
        )
        np.testing.assert_allclose(two[1](X), three[1](X), rtol=1e-5)


@pytest.mark.slow
def test_batch_norm_under_many_indices_leaks_no_tracer():
    enn = networks.EnsembleWithState(BATCH_NORM, 3)
    params, state = compiled(enn.init)(key(0), X, 0)
    forward = jax.jit(jax.vmap(enn.apply, in_axes=[None, None, None, 0]))
    with jax.checking_leaks():
        out, new_state = forward(params, state, X, np.arange(4) % 3)
    np.testing.assert_allclose(out[3], out[0], rtol=1e-5, atol=1e-6)
    jax.tree.map(
        lambda new, old: np.testing.assert_equal(new.shape, (4, *old.shape)),
        new_state,
        state,
    )


def _close(actual, expected, rtol=1e-5):
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=1e-6)


def test_mlp_priors_have_the_parameters_of_successive_keys():
    w_init = hk.initializers.RandomNormal(0.3)
    b_init = hk.initializers.Constant(0.2)
    fns = networks.make_mlp_ensemble_prior_fns([4, 2], X, 3, 8, w_init, b_init)
    mlp = hk.without_apply_rng(
        hk.transform(lambda x: hk.nets.MLP([4, 2], w_init, b_init)(x))
    )
    rng = hk.PRNGSequence(8)
    assert len(fns) == 3
    for fn in fns:
        params = compiled(mlp.init)(next(rng), X)
        _close(compiled(fn)(X), compiled(mlp.apply)(params, X))


def test_mlp_priors_take_inputs_of_their_size_only():
    fns = networks.make_mlp_ensemble_prior_fns([4, 2], np.ones((1, 2, 3)), 2)
    assert fns[0](np.ones((5, 6), np.float32)).shape == (5, 2)
    with pytest.raises(ValueError, match=r"6 features, got shape \[5, 4\]"):
        fns[1](np.ones((5, 4), np.float32))


def _stateful_net(x):
    x = hk.BatchNorm(True, True, 0.5)(hk.Linear(4)(x), is_training=True)
    return hk.Linear(2)(jax.nn.relu(x))


@pytest.mark.slow
def test_an_ensemble_of_any_network_is_its_members():
    x = golden.normal(5, 3)
    enn = networks.wrap_stochastic_fn_as_enn(
        lambda x: hk.dropout(hk.next_rng_key(), 0.5, _stateful_net(x))
    )
    ensemble = networks.make_ensemble(enn, 3)
    member, own = ensemble.indexer(jax.random.key(8))
    params, state = ensemble.init(jax.random.key(0), x, (member, own))
    for k, init_key in enumerate(jax.random.split(jax.random.key(0), 3)):
        one = jax.jit(enn.init)(init_key, x, own)
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-4),
            jax.tree.map(lambda leaf, k=k: leaf[k], (params, state)),
            one,
        )
        out, new_state = jax.jit(ensemble.apply)(params, state, x, (k, own))
        expected, member_state = jax.jit(enn.apply)(*one, x, own)
        np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-6)
        for name, module in member_state.items():
            for leaf, value in module.items():
                np.testing.assert_allclose(new_state[name][leaf][k], value, rtol=1e-4)
                others = np.delete(new_state[name][leaf], k, axis=0)
                same = np.delete(state[name][leaf], k, axis=0)
                np.testing.assert_array_equal(others, same)


def test_members_that_ignore_their_index_run_once_each():
    x = np.ones((64, 32), np.float32)
    model = hk.without_apply_rng(hk.transform(lambda x: hk.nets.MLP([32, 16])(x)))
    enn = networks.wrap_transformed_as_enn(model)
    one = flops_at_indices(enn, x, None)
    ensemble = networks.make_ensemble(enn, 3)
    assert flops_at_indices(ensemble, x, 100) < 3.1 * one + 100 * 64 * 16


def test_an_ensemble_of_no_members_raises():
    with pytest.raises(ValueError, match="num_ensemble must be an integer >= 1"):
        networks.make_ensemble(networks.MLPEnsembleMatchedPrior([2], num_ensemble=1), 0)
