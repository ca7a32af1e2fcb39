import functools

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from enn import networks
from enn.networks import einsum_mlp
from enn.networks.base import OutputWithPrior
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

NUM_MEMBERS = 10
WIDE = jnp.ones((32, 16))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "make"),
    [
        (
            "einsum_ensemble",
            lambda: einsum_mlp.make_einsum_ensemble_mlp_enn([8, 3], num_ensemble=5),
        ),
        (
            "einsum_ensemble_tanh",
            lambda: einsum_mlp.make_einsum_ensemble_mlp_enn(
                [8, 8, 3], num_ensemble=2, nonzero_bias=False, activation=jnp.tanh
            ),
        ),
        (
            "einsum_ensemble_prior",
            lambda: einsum_mlp.make_ensemble_mlp_with_prior_enn(
                [8, 3], golden.X5, num_ensemble=5, prior_scale=0.5
            ),
        ),
    ],
)
def test_golden_values(name, make):
    golden.assert_enn_matches(name, make())


@pytest.mark.slow
def test_golden_values_of_prior_functions():
    values = compiled(_prior_functions)(golden.X5, golden.normal(3, seed=8))
    golden.assert_matches("prior_functions", values)


def _prior_functions(x, z):
    fns = networks.make_mlp_ensemble_prior_fns([4, 2], x, num_ensemble=3, seed=5)
    gp = networks.make_random_feat_gp(5, 2, 20, key(4), gamma=(0.5, 2.0), scale=1.5)
    matched = networks.MLPEnsembleMatchedPrior([4, 2], dummy_input=x, num_ensemble=3)
    return {
        "choice": networks.combine_functions_choice_via_index(fns)(x, 2),
        "linear": networks.combine_functions_linear_in_index(fns)(x, z),
        "gp": gp(x),
        "random_mlp": networks.get_random_mlp_with_index(x, z, key(6))(x, z),
        "ensemble": einsum_mlp.make_ensemble_prior([4, 2], 3, x)(x, z),
        "converted": networks.convert_enn_to_prior_fn(matched, x, key(9))(x, 1),
        "null": networks.make_null_prior(4)(x),
    }


def test_anchors_of_ensemble_with_prior():
    enn = einsum_mlp.make_ensemble_mlp_with_prior_enn([4, 2], X, 3)
    for index, preds, prior in [
        (0, [-0.450542, 0.564021], [-0.219540, 0.412022]),
        (2, [-0.331780, 0.361748], [-0.241647, 0.389963]),
    ]:
        assert_output_starts(output(enn, index), preds, prior)


def test_anchor_of_prior_function():
    prior_fn = einsum_mlp.make_ensemble_prior([4, 2], 3, X)
    assert_output_starts(
        compiled(prior_fn)(X, np.array([1, 0, 0], np.float32)), [0.018188, 0.017388]
    )


def _slow_member(params, inputs, member, activation=jax.nn.relu):
    out = inputs.reshape(len(inputs), -1)
    layers = sorted(params)
    for i, layer in enumerate(layers):
        w, b = (params[layer][name][..., member] for name in "wb")
        out = (activation(out) if i else out) @ w + b[None]
    return out


def _enn_and_params(**options):
    enn = einsum_mlp.make_einsum_ensemble_mlp_enn([4, 5, 2], 3, **options)
    inputs = np.random.default_rng(1).normal(size=(6, 2, 3)).astype(np.float32)
    return enn, inputs, random_params(enn, inputs)[0]


def test_parameter_tree_has_members_on_the_last_axis():
    enn = einsum_mlp.make_einsum_ensemble_mlp_enn([4, 5, 2], 3)
    assert param_shapes(enn, jnp.ones((6, 2, 3))) == {
        "ensemble_mlp/~/ensemble_branch": {"w": (6, 4, 3), "b": (4, 3)},
        "ensemble_mlp/~/linear": {"w": (4, 5, 3), "b": (5, 3)},
        "ensemble_mlp/~/linear_1": {"w": (5, 2, 3), "b": (2, 3)},
    }


@pytest.mark.strict
@pytest.mark.parametrize("indices", [[1], [2, 0], [0, 2, 1, 1, 0]])
def test_every_member_is_an_mlp_of_its_own(indices):
    enn, inputs, params = _enn_and_params(activation=jnp.tanh)
    apply = compiled(jax.vmap(enn.apply, in_axes=(None, None, None, 0)))
    out, state = apply(params, {}, inputs, jnp.array(indices))
    assert state == {}
    expected = [_slow_member(params, inputs, k, jnp.tanh) for k in indices]
    np.testing.assert_allclose(out, np.stack(expected), rtol=1e-4, atol=1e-6)


def test_ensemble_mlp_gives_all_members():
    _, inputs, params = _enn_and_params()
    module = hk.without_apply_rng(
        hk.transform(lambda x: einsum_mlp.EnsembleMLP([4, 5, 2], 3)(x))
    )
    expected = [_slow_member(params, inputs, k) for k in range(3)]
    np.testing.assert_allclose(
        compiled(module.apply)(params, inputs),
        np.stack(expected, -1),
        rtol=1e-4,
        atol=1e-6,
    )


def test_w_init_reaches_every_layer_and_the_first_bias_alone_is_random():
    w_init = hk.initializers.Constant(0.5)
    make = functools.partial(einsum_mlp.make_einsum_ensemble_mlp_enn, [4, 5, 2], 3)
    params, _ = init(make(w_init=w_init))
    assert all(np.all(layer["w"] == 0.5) for layer in params.values())
    zero_bias = {name: bool(np.all(layer["b"] == 0)) for name, layer in params.items()}
    assert list(zero_bias.values()) == [False, True, True]
    params, _ = init(make(w_init=w_init, nonzero_bias=False))
    assert all(np.all(layer["b"] == 0) for layer in params.values())


def test_a_member_that_is_nan_leaves_the_others_alone():
    enn, inputs, params = _enn_and_params()
    params = jax.tree.map(np.array, params)
    for leaf in jax.tree.leaves(params):
        leaf[..., 2] = np.nan
    assert np.isfinite(compiled(enn.apply)(params, {}, inputs, 1)[0]).all()
    many = compiled(jax.vmap(enn.apply, in_axes=(None, None, None, 0)))
    out, _ = many(params, {}, inputs, jnp.array([0, 1, 2, 0]))
    np.testing.assert_array_equal(np.isfinite(out).all((1, 2)), [1, 1, 0, 1])


@pytest.mark.parametrize("index", [-1, 3])
def test_index_out_of_range_raises_or_gives_nan_but_never_zeros(index):
    enn, inputs, params = _enn_and_params()
    with pytest.raises(ValueError, match=r"index must be in \[0, 3\)"):
        enn.apply(params, {}, inputs, index)
    out, _ = compiled(enn.apply)(params, {}, inputs, index)
    if index == 3:
        assert np.isnan(out).all()
    else:
        np.testing.assert_allclose(out, _slow_member(params, inputs, 2), rtol=1e-4)


@pytest.mark.strict
def test_prior_function_is_linear_in_the_index():
    prior_fn = einsum_mlp.make_ensemble_prior([4, 2], 3, X)
    fn = compiled(prior_fn)
    members = [fn(X, z) for z in np.eye(3, dtype=np.float32)]
    z = np.array([0.5, -2.0, 3.0], np.float32)
    expected = sum(float(z_k) * member for z_k, member in zip(z, members, strict=True))
    np.testing.assert_allclose(fn(X, z), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=r"index must have shape \[3\], got \[2\]"):
        prior_fn(X, z[:2])


def test_prior_variants_forward_activation_and_w_init():
    options = {
        "activation": jnp.tanh,
        "w_init": hk.initializers.Constant(0.5),
    }
    prior_fn = einsum_mlp.make_ensemble_prior([4, 2], 2, X, **options)
    linear = einsum_mlp.make_ensemble_prior(
        [4, 2], 2, X, activation=lambda x: x, w_init=options["w_init"]
    )
    z = np.array([1, 0], np.float32)
    assert np.abs(compiled(prior_fn)(100 * X, z)).max() <= 4 * 0.5
    assert np.abs(compiled(linear)(100 * X, z)).max() > 100
    enn = einsum_mlp.make_ensemble_mlp_with_prior_enn([4, 2], X, 2, **options)
    params, _ = init(enn)
    out, _ = compiled(enn.apply)(params, {}, 100 * X, 0)
    assert isinstance(out, OutputWithPrior)
    assert np.abs(out.train).max() <= 2
    assert np.abs(out.prior).max() <= 2


def test_many_indices_run_every_member_once():
    enn = einsum_mlp.make_einsum_ensemble_mlp_enn([32, 3], NUM_MEMBERS)
    member = mlp_flops(32, 16, 32, 3)
    assert flops_at_indices(enn, WIDE) <= 1.1 * NUM_MEMBERS * member
    assert flops_at_indices(enn, WIDE, num_indices=4) <= 1.1 * 4 * member
    assert flops_at_indices(enn, WIDE, num_indices=1) <= 1.1 * member


def test_a_single_index_runs_a_single_member():
    enn = einsum_mlp.make_einsum_ensemble_mlp_enn([32, 3], NUM_MEMBERS)
    params, _ = random_params(enn, WIDE)
    cost = flops(enn.apply, params, {}, WIDE, 0)
    assert cost <= 1.1 * mlp_flops(32, 16, 32, 3)


@pytest.mark.slow
def test_many_indices_run_every_prior_once():
    enn = einsum_mlp.make_ensemble_mlp_with_prior_enn([32, 3], WIDE, NUM_MEMBERS)
    members = NUM_MEMBERS * mlp_flops(32, 16, 32, 3)
    scale_and_add = 2 * 100 * 32 * 3
    assert flops_at_indices(enn, WIDE) <= 1.1 * (2 * members + scale_and_add)
    prior_fn = einsum_mlp.make_ensemble_prior([32, 3], NUM_MEMBERS, WIDE)
    cost = flops(
        jax.vmap(prior_fn, in_axes=(None, 0)), WIDE, jnp.ones((100, NUM_MEMBERS))
    )
    assert cost <= 1.1 * (members + 2 * 100 * 32 * 3 * NUM_MEMBERS)


def _call(module, *args):
    return hk.transform(lambda *args: module()(*args)).init(key(0), *args)


@pytest.mark.parametrize(
    ("module", "inputs", "match"),
    [
        (lambda: einsum_mlp.EnsembleBranch(3, 2, True), (4,), "batch, num_features"),
        (lambda: einsum_mlp.EnsembleBranch(0, 2, True), (4, 3), "num_ensemble"),
        (lambda: einsum_mlp.EnsembleLinear(2), (4, 3), "num_features, num_ensemble"),
        (lambda: einsum_mlp.EnsembleLinear(0), (4, 3, 2), "output_size"),
        (lambda: einsum_mlp.EnsembleMLP([2], 3), (4,), "batch, num_features"),
        (lambda: einsum_mlp.EnsembleMLP([], 3), (4, 3), "at least one layer"),
        (lambda: einsum_mlp.EnsembleMLP([4, 0], 3), (4, 3), "output_sizes"),
    ],
)
def test_wrong_sizes_and_ranks(module, inputs, match):
    with pytest.raises(ValueError, match=match):
        _call(module, jnp.ones(inputs))


def test_ensemble_linear_takes_the_number_of_members_from_its_inputs():
    def forward(inputs):
        layer = einsum_mlp.EnsembleLinear(2)
        assert layer.num_ensemble is None
        layer(inputs)
        assert layer.num_ensemble == 5
        return inputs

    hk.transform(forward).init(key(0), jnp.ones((4, 3, 5)))


@pytest.mark.parametrize(
    "make",
    [
        einsum_mlp.make_einsum_ensemble_mlp_enn,
        lambda sizes, num: einsum_mlp.make_ensemble_mlp_with_prior_enn(sizes, X, num),
        lambda sizes, num: einsum_mlp.make_ensemble_prior(sizes, num, X),
    ],
)
def test_makers_check_sizes(make):
    for sizes, num_ensemble, match in [
        ([], 3, "output_sizes"),
        ([4, -1], 3, "output_sizes"),
        ([4, 2], 0, "num_ensemble"),
    ]:
        with pytest.raises(ValueError, match=match):
            make(sizes, num_ensemble)


@pytest.mark.parametrize(
    "activation", [jax.nn.relu, lambda x: x / (1 + jnp.abs(x).sum(1, keepdims=True))]
)
def test_members_are_those_of_the_whole_ensemble(activation):
    """One member runs with the batch last, unless its activation mixes features."""
    enn = networks.make_einsum_ensemble_mlp_enn([5, 4, 2], 3, activation=activation)
    whole = hk.transform(
        lambda x: einsum_mlp.EnsembleMLP([5, 4, 2], 3, activation=activation)(x)
    )
    params, _ = random_params(enn, X)
    for member, expected in enumerate(jnp.moveaxis(whole.apply(params, None, X), 2, 0)):
        np.testing.assert_allclose(
            enn.apply(params, {}, X, member)[0], expected, 1e-5, 1e-6
        )
