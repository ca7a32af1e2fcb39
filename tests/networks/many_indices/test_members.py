import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enn.networks.many_indices import members
from tests.support import cost
from tests.support.cost import flops
from tests.support.fast import compiled

NUM_MEMBERS = 3


def _normal(*shape):
    draws = np.random.default_rng(sum(shape)).normal(size=shape)
    return jnp.asarray(draws, jnp.float32)


STACKED = {"w": _normal(NUM_MEMBERS, 4, 2), "b": _normal(NUM_MEMBERS, 1, 2)}
X = _normal(5, 4)
INDICES = jnp.array([2, 0, 1, 1, 2, 0])
FNS = tuple(functools.partial(lambda k, x: (k + 1) * x, k) for k in range(3))

WIDE = jnp.ones((64, 32))
WIDE_STACKED = jnp.ones((NUM_MEMBERS, 32, 16))
ONE_MEMBER = 2 * 64 * 32 * 16


def _linear(member, inputs):
    return jnp.sin(inputs @ member["w"] + member["b"])


def _member(index, inputs=X):
    weights, bias = np.asarray(STACKED["w"]), np.asarray(STACKED["b"])
    return np.sin(np.asarray(inputs) @ weights[index] + bias[index])


def _apply(stacked, inputs, index):
    return members.apply_member(_linear, stacked, inputs, index, NUM_MEMBERS)


def _choose(inputs, index):
    return members.apply_choice(FNS, inputs, index)


def _leaf(stacked, index):
    return jax.tree.map(lambda leaf: leaf[index], stacked)


def _expected(indices, inputs=X):
    return np.stack([_member(index, inputs) for index in np.ravel(indices)])


def _expected_choices(indices, inputs=X):
    return (np.ravel(indices)[:, None, None] + 1) * np.asarray(inputs)


_OVER_INDICES = jax.jit(jax.vmap(_apply, in_axes=(None, None, 0)))
_CHOICES = jax.jit(jax.vmap(_choose, in_axes=(None, 0)))


def _close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.strict
@pytest.mark.parametrize("index", [0, 2, np.int64(1), jnp.array(2), np.uint8(1)])
def test_the_selected_member_runs(index):
    for apply in (_apply, jax.jit(_apply)):
        _close(apply(STACKED, X, index), _member(int(index)))
    for choose in (_choose, jax.jit(_choose)):
        _close(choose(X, index), (int(index) + 1) * np.asarray(X))


@pytest.mark.parametrize("axis", [1, -1, 2])
def test_members_may_be_stacked_on_any_axis(axis):
    moved = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, axis), STACKED)
    apply = functools.partial(
        members.apply_member, _linear, num_members=NUM_MEMBERS, axis=axis
    )
    _close(compiled(apply)(moved, X, 1), _member(1))
    over_indices = jax.vmap(lambda z: apply(moved, X, z))
    _close(compiled(over_indices)(INDICES), _expected(INDICES))


@pytest.mark.parametrize("num_indices", [1, 2, 3, 6])
def test_vmap_over_indices_is_one_at_a_time(num_indices):
    indices = INDICES[:num_indices]
    out = _OVER_INDICES(STACKED, X, indices)
    _close(out, _expected(indices))
    out = _CHOICES(X, indices)
    _close(out, _expected_choices(indices))


@pytest.mark.strict
@pytest.mark.parametrize("num_indices", [2, 6])
@pytest.mark.parametrize("inside", [jax.jit, jax.checkpoint, lambda fn: fn])
def test_transformations_inside_and_outside_vmap_agree(num_indices, inside):
    indices = INDICES[:num_indices]
    out = compiled(jax.vmap(inside(_apply), (None, None, 0)))(STACKED, X, indices)
    _close(out, _expected(indices))
    out = compiled(jax.vmap(inside(_choose), (None, 0)))(X, indices)
    _close(out, _expected_choices(indices))


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(-NUM_MEMBERS, NUM_MEMBERS - 1), min_size=5, max_size=5))
def test_any_indices_pick_their_members(indices):
    _close(_OVER_INDICES(STACKED, X, np.array(indices)), _expected(indices))


def test_nested_vmaps_over_indices():
    indices = INDICES.reshape(2, 3)
    over_rows = jax.vmap(_apply, in_axes=(None, None, 0))
    over_all = jax.vmap(over_rows, in_axes=(None, None, 0))
    out = compiled(over_all)(STACKED, X, indices)
    _close(out.reshape(6, 5, 2), _expected(indices))


@pytest.mark.parametrize("outer", [(0, None), (None, 0), (0, 0)])
def test_nested_vmaps_over_inputs_and_indices(outer):
    xs = _normal(2, 5, 4)
    indices = jnp.array([[2, 0, 1, 1], [0, 0, 2, 1]])
    over_x, over_z = outer
    inner = jax.vmap(functools.partial(_apply, STACKED), in_axes=(None, 0))
    out = compiled(jax.vmap(inner, in_axes=outer))(
        xs if over_x == 0 else xs[0], indices if over_z == 0 else indices[0]
    )
    for i in range(2):
        x = xs[i if over_x == 0 else 0]
        row = indices[i if over_z == 0 else 0]
        _close(out[i], _expected(row, x))


def test_inputs_and_indices_mapped_together():
    xs = _normal(6, 5, 4)
    out = compiled(jax.vmap(functools.partial(_apply, STACKED)))(xs, INDICES)
    expected = [_member(z, x) for x, z in zip(xs, INDICES, strict=True)]
    _close(out, np.stack(expected))
    _close(compiled(jax.vmap(_choose))(xs, INDICES), _expected_choices(INDICES, xs))


def test_parameters_and_indices_mapped_together():
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, -leaf]), STACKED)
    over_both = compiled(jax.vmap(_apply, in_axes=(0, None, 0)))
    out = over_both(stacked, X, jnp.array([2, 0]))
    _close(out, np.stack([_member(2), -_member(0)]))


def test_scan_over_indices():
    def step(total, index):
        out = _apply(STACKED, X, index)
        return total + out, _choose(X, index)

    def total(indices):
        return jax.lax.scan(step, jnp.zeros((5, 2)), indices)

    sums, choices = compiled(total)(INDICES)
    _close(sums, _expected(INDICES).sum(0))
    _close(choices, _expected_choices(INDICES))
    sums, choices = compiled(jax.vmap(total))(INDICES[:, None])
    _close(sums, _expected(INDICES))
    _close(choices[:, 0], _expected_choices(INDICES))


@pytest.mark.parametrize("num_indices", [2, 6])
@pytest.mark.parametrize("jit_inside", [False, True])
def test_gradients_reach_the_selected_members_only(num_indices, jit_inside):
    indices = INDICES[:num_indices]
    weights = _normal(num_indices, 5, 2)
    apply = jax.jit(_apply) if jit_inside else _apply

    def total(stacked, inputs):
        outs = jax.vmap(apply, in_axes=(None, None, 0))(stacked, inputs, indices)
        return jnp.sum(weights * outs)

    def reference(stacked, inputs):
        outs = jnp.stack([_linear(_leaf(stacked, z), inputs) for z in indices])
        return jnp.sum(weights * outs)

    found = compiled(jax.grad(total, argnums=(0, 1)))(STACKED, X)
    expected = compiled(jax.grad(reference, argnums=(0, 1)))(STACKED, X)
    jax.tree.map(_close, found, expected)
    if num_indices == 2:
        np.testing.assert_array_equal(found[0]["w"][1], 0)


def _square(stacked, index):
    return jnp.sum(_apply(stacked, X, index) ** 2)


def _square_reference(stacked, index):
    return jnp.sum(_linear(_leaf(stacked, index), X) ** 2)


def _pushed(fn, index):
    tangent = jax.tree.map(jnp.cos, STACKED)
    return jax.jvp(lambda stacked: fn(stacked, index), (STACKED,), (tangent,))[1]


def test_vmap_of_grad():
    grads = compiled(jax.vmap(jax.grad(_square), (None, 0)))(STACKED, INDICES)
    one = compiled(jax.grad(_square_reference))
    for i, index in enumerate(INDICES):
        jax.tree.map(_close, _leaf(grads, i), one(STACKED, index))


def test_vmap_of_jvp():
    pushed = compiled(jax.vmap(functools.partial(_pushed, _square)))(INDICES)
    one = compiled(functools.partial(_pushed, _square_reference))
    expected = [one(index) for index in INDICES]
    np.testing.assert_allclose(pushed, expected, rtol=1e-4)


def test_choices_are_differentiable_in_the_inputs():
    def total(inputs, index):
        return jnp.sum(_choose(inputs, index))

    np.testing.assert_array_equal(jax.grad(total)(X, 2), np.full_like(X, 3))
    np.testing.assert_array_equal(compiled(jax.grad(total))(X, 2), np.full_like(X, 3))
    grads = compiled(jax.vmap(jax.grad(total), (None, 0)))(X, INDICES)
    np.testing.assert_array_equal(grads[:, 0, 0], INDICES + 1)


@pytest.mark.parametrize("call", [_choose, functools.partial(_apply, STACKED)])
@pytest.mark.parametrize("index", [-1, 3, np.int32(7), jnp.array(-4)])
def test_a_known_index_out_of_range_raises(call, index):
    with pytest.raises(ValueError, match=rf"in \[0, 3\), got {int(index)}"):
        call(X, index)
    with pytest.raises(ValueError, match=r"in \[0, 3\)"):
        jax.jit(lambda x: call(x, index))(X)


@pytest.mark.parametrize("call", [_choose, functools.partial(_apply, STACKED)])
@pytest.mark.parametrize(
    "index", [1.0, True, jnp.arange(2), jax.random.key(0), jax.random.PRNGKey(0)]
)
def test_an_index_that_is_no_integer_scalar_raises(call, index):
    with pytest.raises(ValueError, match="takes an integer scalar as its index"):
        call(X, index)
    with pytest.raises(ValueError, match="takes an integer scalar as its index"):
        jax.jit(call)(X, index)


@pytest.mark.parametrize("transform", [jax.jit, jax.vmap])
def test_unknown_negative_indices_wrap_and_others_give_nan(transform):
    def both(index):
        return _apply(STACKED, X, index), _choose(X, index)

    indices = np.array([-1, 3, -3, -4, 0, 2, 99, -2])
    if transform is jax.vmap:
        outs = zip(*jax.jit(jax.vmap(both))(indices), strict=True)
    else:
        outs = map(jax.jit(both), indices)
    for index, (out, choice) in zip(indices, outs, strict=True):
        known = -3 <= index < 3
        _close(out, _member(index) if known else np.full((5, 2), np.nan))
        expected = (index % 3 + 1) * np.asarray(X)
        _close(choice, expected if known else np.full(X.shape, np.nan))


def test_choices_keep_their_dtype():
    inputs = jnp.arange(4)
    assert compiled(_choose)(inputs, 1).dtype == jnp.int32
    outs = compiled(jax.vmap(_choose, (None, 0)))(inputs, jnp.array([1, 2]))
    assert outs.dtype == jnp.int32
    np.testing.assert_array_equal(outs, [[0, 2, 4, 6], [0, 3, 6, 9]])


def _apply_wide(stacked, inputs, index):
    return members.apply_member(
        lambda member, x: x @ member, stacked, inputs, index, len(stacked)
    )


@pytest.mark.parametrize(("num_indices", "members_run"), [(1, 1), (2, 2), (3, 3)])
def test_few_indices_run_the_selected_members(num_indices, members_run):
    fn = jax.vmap(_apply_wide, in_axes=(None, None, 0))
    cost = flops(fn, WIDE_STACKED, WIDE, jnp.arange(num_indices))
    assert cost <= 1.1 * members_run * ONE_MEMBER


@pytest.mark.parametrize("num_members", [1, 2, NUM_MEMBERS])
@pytest.mark.parametrize("num_indices", [3, 50])
def test_many_indices_run_every_member_once(num_members, num_indices):
    fn = jax.vmap(_apply_wide, in_axes=(None, None, 0))
    indices = jnp.arange(num_indices) % num_members
    picking = num_indices * WIDE.shape[0] * WIDE_STACKED.shape[-1]
    cost = flops(fn, WIDE_STACKED[:num_members], WIDE, indices)
    assert cost <= 1.1 * num_members * ONE_MEMBER + picking


def test_nested_vmaps_run_every_member_once():
    fn = jax.vmap(_apply_wide, in_axes=(None, None, 0))
    fn = jax.vmap(fn, in_axes=(None, None, 0))
    indices = jnp.zeros((2, 2), jnp.int32)
    picking = 4 * WIDE.shape[0] * WIDE_STACKED.shape[-1]
    cost = flops(fn, WIDE_STACKED, WIDE, indices)
    assert cost <= 1.1 * NUM_MEMBERS * ONE_MEMBER + picking


def test_inputs_mapped_with_the_index_run_one_member_each():
    fn = jax.vmap(_apply_wide, in_axes=(None, 0, 0))
    cost = flops(fn, WIDE_STACKED, jnp.ones((10, *WIDE.shape)), jnp.zeros(10, int))
    assert cost <= 1.1 * 10 * ONE_MEMBER


@pytest.mark.parametrize("num_indices", [2, 50])
def test_jit_inside_vmap_runs_one_member_an_index(num_indices):
    fn = jax.vmap(jax.jit(_apply_wide), in_axes=(None, None, 0))
    cost = flops(fn, WIDE_STACKED, WIDE, jnp.zeros(num_indices, int))
    assert cost <= 1.1 * num_indices * ONE_MEMBER


@pytest.mark.parametrize("num_indices", [2, 50])
def test_choices_evaluate_every_function_once(num_indices):
    fns = tuple(functools.partial(jnp.matmul, b=w) for w in WIDE_STACKED)

    def choose(inputs, index):
        return members.apply_choice(fns, inputs, index)

    indices = jnp.zeros(num_indices, int)
    picking = num_indices * WIDE.shape[0] * WIDE_STACKED.shape[-1]
    cost = flops(jax.vmap(choose, in_axes=(None, 0)), WIDE, indices)
    assert cost <= 1.1 * NUM_MEMBERS * ONE_MEMBER + picking
    assert flops(choose, WIDE, 1) <= 1.1 * ONE_MEMBER


def test_leaves_with_another_number_of_entries_are_passed_on():
    tree = {"a": jnp.arange(6).reshape(3, 2), "b": jnp.arange(2.0), "c": jnp.ones(())}
    chosen = members.select_member(tree, 1, 3)
    np.testing.assert_array_equal(chosen["a"], [2, 3])
    assert (chosen["b"] is tree["b"], chosen["c"] is tree["c"]) == (True, True)
    new = members.update_member(tree, chosen | {"a": jnp.array([8, 9])}, 1, 3)
    np.testing.assert_array_equal(new["a"], [[0, 1], [8, 9], [4, 5]])
    assert (new["b"] is tree["b"], new["c"] is tree["c"]) == (True, True)


def test_selecting_takes_the_entry_of_every_leaf():
    stacked = {"a": jnp.arange(6).reshape(2, 3), "b": jnp.arange(2.0)}
    chosen = members.select_member(stacked, 1, 2)
    np.testing.assert_array_equal(chosen["a"], [3, 4, 5])
    assert chosen["b"] == 1.0
    column = members.select_member(stacked["a"], 2, 3, axis=1)
    np.testing.assert_array_equal(column, [2, 5])


def _convolutions(member, images):
    for kernel in (member["first"], member["second"]):
        images = jax.lax.conv(images, kernel, (1, 1), "SAME")
    return jnp.sin(images) + member["shared"]


IMAGES = _normal(2, 3, 6, 6)
KERNELS = {
    "first": _normal(NUM_MEMBERS, 4, 3, 3, 3),
    "second": _normal(NUM_MEMBERS, 5, 4, 3, 3),
    "shared": _normal(1, 1, 1, 6),
}


def _convolve(stacked, images, index, axis=0):
    return members.apply_member(
        _convolutions, stacked, images, index, NUM_MEMBERS, axis
    )


def _loss_at(indices, weights, axis=0):
    def loss(stacked, images):
        def one(index):
            return _convolve(stacked, images, index, axis)

        return jnp.sum(weights * jax.vmap(one)(indices))

    return loss


@pytest.mark.strict
@pytest.mark.parametrize("num_indices", [1, 2, 3, 6])
@pytest.mark.parametrize("axis", [0, -1])
def test_members_with_convolutions_are_those_of_a_loop(num_indices, axis):
    indices = INDICES[:num_indices]
    weights = _normal(num_indices, 2, 5, 6, 6)

    def reference(stacked, images):
        runs = [
            _convolutions({**_leaf(stacked, z), "shared": stacked["shared"]}, images)
            for z in indices
        ]
        return jnp.sum(weights * jnp.stack(runs))

    moved = {
        name: leaf if name == "shared" else jnp.moveaxis(leaf, 0, axis)
        for name, leaf in KERNELS.items()
    }
    grads = jax.grad(_loss_at(indices, weights, axis), (0, 1))
    found, images = compiled(grads)(moved, IMAGES)
    for name in ("first", "second"):
        found[name] = jnp.moveaxis(found[name], axis, 0)
    expected = compiled(jax.grad(reference, (0, 1)))(KERNELS, IMAGES)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-3)
    jax.tree.map(close, (found, images), expected)


@pytest.mark.parametrize(("num_indices", "runs"), [(1, 1), (2, 2), (3, 3), (50, 3)])
def test_convolutions_and_their_gradients_are_not_grouped(num_indices, runs):
    # A training step costs XLA the square of the number of groups on a CPU.
    loss = _loss_at(np.zeros(num_indices, int), 1.0)
    convolutions = cost.convolutions(jax.grad(loss), KERNELS, IMAGES)
    forward, backward = 2, 3  # The first layer needs no gradient of the images.
    assert convolutions == [1] * runs * (forward + backward)


def test_convolutions_of_few_members_run_inside_other_maps():
    indices = jnp.array([[2, 0], [1, 1]])
    pairs = jax.vmap(_convolve, in_axes=(None, None, 0))
    nested = compiled(jax.vmap(pairs, in_axes=(None, None, 0)))
    mapped = compiled(jax.vmap(pairs, in_axes=(None, 0, 0)))
    images = jnp.stack([IMAGES, -IMAGES])
    outs = nested(KERNELS, IMAGES, indices), mapped(KERNELS, images, indices)
    for i, j in np.ndindex(2, 2):
        member = {**_leaf(KERNELS, indices[i, j]), "shared": KERNELS["shared"]}
        for out, inputs in zip(outs, (IMAGES, images[i]), strict=True):
            expected = compiled(_convolutions)(member, inputs)
            np.testing.assert_allclose(out[i, j], expected, rtol=1e-4, atol=1e-4)


PAIRS = jnp.stack([IMAGES, -IMAGES, 2 * IMAGES])


def _pairs_loss(stacked, images):
    outs = jax.vmap(_convolve, (None, 0, 0))(stacked, images, np.array([2, 0, 2]))
    return jnp.sum(jnp.square(outs))


def test_convolutions_of_own_inputs_are_not_grouped_either():
    # As where every index draws something of its own, such as dropout.
    convolutions = cost.convolutions(jax.grad(_pairs_loss), KERNELS, PAIRS)
    assert convolutions == [1] * 3 * (2 + 3)


@pytest.mark.parametrize("argnum", [0, 1])
def test_convolutions_of_own_inputs_are_those_of_a_loop(argnum):
    def one(stacked, images, index):
        return jnp.sum(jnp.square(_convolve(stacked, images, index)))

    grad = jax.grad(one, argnum)
    found = compiled(jax.grad(_pairs_loss, argnum))(KERNELS, PAIRS)
    mapped = compiled(jax.vmap(grad, (None, 0, 0)))(KERNELS, PAIRS, np.array([2, 0, 2]))
    expected = [
        compiled(grad)(KERNELS, images, z)
        for images, z in zip(PAIRS, [2, 0, 2], strict=True)
    ]
    expected = jax.tree.map(lambda *leaves: jnp.stack(leaves), *expected)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-2)
    jax.tree.map(close, mapped, expected)
    if argnum == 0:
        expected = jax.tree.map(lambda leaf: leaf.sum(0), expected)
    jax.tree.map(close, found, expected)


def test_members_with_convolutions_run_at_once_elsewhere(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    loss = _loss_at(INDICES, 1.0)
    assert max(cost.convolutions(loss, KERNELS, IMAGES)) == NUM_MEMBERS
