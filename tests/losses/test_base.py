import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from enn import losses, networks
from enn.losses import base
from tests.losses import cases
from tests.support import golden


def _output_loss(apply, params, state, batch, index):
    out, state = apply(params, state, batch.x, index)
    return jnp.sum(out), (state, {"square": jnp.sum(out) ** 2, "constant": 3})


def test_golden_l2():
    loss_fn = losses.average_single_index_loss(losses.L2Loss(), 5)
    batch = golden.batch("regression")
    golden.assert_matches(
        "loss_l2", cases.evaluate(loss_fn, cases.golden_ensemble(1), batch)
    )


@pytest.mark.parametrize("make_key", [jax.random.PRNGKey, jax.random.key])
def test_averages_loss_and_metrics_over_indices_folded_in_by_position(make_key):
    enn, key = cases.index_network(10), make_key(0)
    loss_fn = losses.average_single_index_loss(_output_loss, 4)
    loss, (state, metrics) = loss_fn(enn, {}, {}, cases.batch_of([[0.0]]), key)
    indices = [int(enn.indexer(jax.random.fold_in(key, s))) for s in range(4)]
    assert loss == 4.75  # stated in the specification of the original
    assert loss == np.mean(indices)
    assert metrics["square"] == np.mean(np.square(indices))
    assert metrics["constant"] == 3
    assert jnp.issubdtype(metrics["constant"].dtype, jnp.floating)
    assert state == {}


def test_averages_over_given_indices():
    enn = cases.index_network(10)
    loss_fn = losses.average_over_indices(_output_loss, jnp.array([1, 4, 7]))
    for seed in range(2):
        loss, (state, metrics) = loss_fn(
            enn, {}, {}, cases.batch_of([[0.0]]), jax.random.key(seed)
        )
        assert loss == 4
        assert metrics["square"] == 22
        assert state == {}


@pytest.mark.slow
def test_given_indices_merge_states_as_drawn_ones_do():
    enn = networks.EnnArray(
        lambda params, state, x, index: (x, {"a": state["a"].at[index].add(1.0)}),
        None,
        networks.EnsembleIndexer(2),
    )
    for rule, expected in (("mean", [0.5, 0.5]), ("updates", [1, 1])):
        loss_fn = losses.average_over_indices(_output_loss, jnp.arange(2), rule)
        batch = cases.batch_of([[0.0]])
        _, (state, _) = loss_fn(enn, {}, {"a": jnp.zeros(2)}, batch, None)
        np.testing.assert_array_equal(state["a"], expected)


@pytest.mark.parametrize(
    "indices", [jnp.array(1), jnp.zeros([0, 3]), (), (jnp.ones(2), jnp.ones(3))]
)
def test_given_indices_that_are_not_stacked(indices):
    with pytest.raises(ValueError, match="stacked along a first axis of size >= 1"):
        losses.average_over_indices(_output_loss, indices)


def test_unknown_rule_for_states_of_given_indices():
    with pytest.raises(ValueError, match="state_merge must be one of"):
        losses.average_over_indices(_output_loss, jnp.arange(2), "first")


def test_forward_pass_that_ignores_the_index_runs_once():
    def apply(params, state, inputs, index):
        return inputs @ params + index, state

    enn = networks.EnnArray(apply, None, networks.EnsembleIndexer(3))
    batch = cases.batch_of(np.zeros([16, 1])).replace(x=np.ones([16, 1000], np.float32))

    def flops(num_index_samples):
        loss_fn = losses.average_single_index_loss(losses.L2Loss(), num_index_samples)
        run = jax.jit(lambda p: loss_fn(enn, p, {}, batch, golden.keys(0))[0])
        return (
            run.lower(np.ones([1000, 1], np.float32)).compile().cost_analysis()["flops"]
        )

    assert flops(20) < 2 * flops(1)


def _first_state(loss_fn, enn):
    batch = cases.batch_of(np.zeros([3, 1])).replace(x=np.full([3, 2], 8.0))
    params, state = enn.init(golden.keys(0), batch.x, 0)
    run = jax.jit(functools.partial(loss_fn, enn))
    return run(params, state, batch, golden.keys(3))[1][0]["net"]


@functools.cache
def _mean_state():
    loss_fn = losses.average_single_index_loss(_output_loss, 5)
    return _first_state(loss_fn, cases.counting_network(4))


def test_mean_of_states_dilutes_members_and_counts_in_whole_numbers():
    enn, state = cases.counting_network(4), _mean_state()
    members = jax.vmap(enn.indexer)(
        jax.vmap(functools.partial(jax.random.fold_in, golden.keys(3)))(jnp.arange(5))
    )
    hits = np.bincount(members, minlength=4)
    assert 0 in hits
    np.testing.assert_allclose(state["average"], 4.0 * hits / 5)
    np.testing.assert_array_equal(state["count"], np.minimum(hits, 1))


@pytest.mark.strict
def test_updates_of_states_move_each_member_at_full_rate():
    enn = cases.counting_network(4)
    loss_fn = losses.average_single_index_loss(_output_loss, 5, state_merge="updates")
    hit = np.asarray(_mean_state()["count"])
    state = _first_state(loss_fn, enn)
    np.testing.assert_array_equal(state["average"], 4.0 * hit)
    np.testing.assert_array_equal(state["count"], hit)


@pytest.mark.parametrize("state_merge", ["mean", "updates"])
def test_state_keeps_its_dtypes(state_merge):
    # Counters that became float32 after the first step compiled the step twice.
    traced = []

    def single_loss(apply, params, state, batch, index):
        return jnp.float32(index), (jax.tree.map(lambda s: s + (index > 2), state), {})

    loss_fn = losses.average_single_index_loss(single_loss, 3, state_merge)

    @jax.jit
    def step(state):
        traced.append(state)
        return loss_fn(cases.index_network(), {}, state, None, golden.keys(0))[1][0]

    dtypes = ["int32", "uint8", "bool", "bfloat16", "float32"]
    state = {"m": {name: np.zeros([2], jnp.dtype(name)) for name in dtypes}}
    state = jax.device_put(state)
    for _ in range(3):
        state = step(state)
    assert {name: leaf.dtype for name, leaf in state["m"].items()} == {
        name: jnp.dtype(name) for name in dtypes
    }
    assert len(traced) == 1


_merge_updates = jax.jit(lambda *states: base._merge(*states, "updates"))  # pyrefly: ignore[bad-argument-count]
_STATES = hnp.arrays(np.float32, (4, 5), elements=st.integers(-3, 3).map(float))


@pytest.mark.parametrize("dtype", ["int32", "float32"])
@hypothesis.given(states=_STATES)
@hypothesis.settings(deadline=None, max_examples=30)
def test_merged_updates_equal_the_entrywise_loop(dtype, states):
    before, after = states.astype(dtype)[0], states.astype(dtype)[1:]
    merged = _merge_updates(before, after)
    for i, entry in enumerate(before):
        changes = [value for value in after[:, i] if value != entry]
        if not changes:
            wanted = entry
        elif dtype == "int32":
            wanted = changes[0]
        else:
            wanted = entry + np.mean([value - entry for value in changes])
        np.testing.assert_allclose(merged[i], wanted, rtol=1e-6, atol=1e-6)


def test_unchanged_state_stays_bit_identical_under_updates():
    before = np.random.default_rng(0).normal(size=7).astype(np.float32)
    after = np.broadcast_to(before, [10, 7])
    np.testing.assert_array_equal(_merge_updates(before, after), before)


def test_state_that_changes_shape_is_named():
    def single_loss(apply, params, state, batch, index):
        return jnp.float32(index), ({"bn": {"mean": jnp.zeros([3])}}, {})

    loss_fn = losses.average_single_index_loss(single_loss, 2)
    state = {"bn": {"mean": jnp.zeros([2])}}
    with pytest.raises(ValueError, match=r"\['bn'\]\['mean'\].*\[2\], got \[3\]"):
        loss_fn(cases.index_network(), {}, state, None, golden.keys(0))


def test_empty_new_state_is_passed_on():
    def single_loss(apply, params, state, batch, index):
        return jnp.float32(index), ({}, {})

    loss_fn = losses.average_single_index_loss(single_loss, 2)
    state = {"bn": {"mean": jnp.zeros([2])}}
    new_state = loss_fn(cases.index_network(), {}, state, None, golden.keys(0))[1][0]
    assert new_state == {}


@pytest.mark.parametrize("num_index_samples", [0, -1, 1.5, True, None])
def test_number_of_indices_is_checked_at_construction(num_index_samples):
    with pytest.raises(ValueError, match="num_index_samples must be an integer >= 1"):
        losses.average_single_index_loss(_output_loss, num_index_samples)


def test_unknown_state_merge_is_rejected():
    with pytest.raises(ValueError, match="must be one of 'mean', 'updates'"):
        losses.average_single_index_loss(_output_loss, 1, "max")


@pytest.mark.parametrize("noise", [False, True])
def test_wrong_label_is_reported_while_tracing_with_a_closed_over_batch(noise):
    single = losses.XentLoss(3)
    if noise:
        single = losses.add_data_noise(
            single, lambda batch, index: batch.replace(weights=index * np.ones([2, 1]))
        )
    loss_fn = losses.average_single_index_loss(single, 2)
    enn = cases.golden_ensemble(3)
    params, state = jax.eval_shape(enn.init, golden.keys(0), golden.X5, 0)

    def trace(y):
        batch = cases.batch_of(y).replace(x=golden.X5[:2])
        jax.eval_shape(
            lambda p, s, k: loss_fn(enn, p, s, batch, k), params, state, golden.keys(1)
        )

    trace([[0], [2]])
    with pytest.raises(ValueError, match=r"in \[0, 3\), got 7 in row 1"):
        trace([[0], [7]])
    with pytest.raises(ValueError, match=r"batch.y must have shape \[batch, 1\]"):
        trace([[0, 1], [0, 1]])


BATCH = cases.batch_of([[1.0], [2.0], [4.0]])


def _state_apply(params, state, inputs, index):
    return state["s"]["x"] * jnp.ones([len(inputs), 1]), {"s": {"x": -1.0}}


@pytest.mark.parametrize("constant", [3.0, None])
def test_constant_state_is_used_and_returned(constant):
    # The wrapper of full losses ran the network with an empty state all the same.
    def single(apply, params, batch, index):
        return jnp.sum(apply(params, batch.x, index)), {}

    def full(enn, params, batch, key):
        return jnp.sum(enn.apply(params, batch.x, enn.indexer(key))), {}

    state = None if constant is None else {"s": {"x": constant}}
    enn = networks.EnnArray(_state_apply, None, networks.PrngIndexer())
    wrapped = losses.wrap_loss_no_state_as_loss(full, state)
    wrapped_single = losses.wrap_single_loss_no_state_as_single_loss(single, state)
    for run in (
        lambda: wrapped(enn, {}, {"s": {"x": 100.0}}, BATCH, golden.keys(0)),
        lambda: wrapped_single(_state_apply, {}, {"s": {"x": 100.0}}, BATCH, 0),
    ):
        if constant is None:
            with pytest.raises(KeyError, match="s"):
                run()
        else:
            loss, (new_state, _) = run()
            assert loss == 3 * constant
            assert new_state == state


def _weight(params, inputs, index):
    return params[index] * jnp.ones([len(inputs), 1])


def test_loss_with_state_gets_the_constant_state():
    def single(apply, params, state, batch, index):
        out, new_state = apply(params, state, batch.x, index)
        return jnp.sum(out) * state["s"]["x"], (new_state, {"n": len(new_state)})

    wrapped = losses.wrap_single_loss_as_single_loss_no_state(
        single, {"s": {"x": 10.0}}
    )
    loss, metrics = wrapped(_weight, jnp.array([0.0, 2.0]), BATCH, 1)
    assert loss == 3 * 2 * 10
    assert metrics == {"n": 0}


@pytest.mark.slow
@pytest.mark.parametrize("state_merge", ["mean", "updates"])
@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_typed_keys_in_the_state_are_those_of_the_first_index(impl, state_merge):
    # Averaging them raised NotImplementedError.
    def single_loss(apply, params, state, batch, index):
        new_keys = jax.vmap(lambda key: jax.random.fold_in(key, index))(state["m"]["k"])
        return jnp.float32(0), ({"m": {"k": new_keys}}, {})

    keys = jax.random.split(jax.random.key(1, impl=impl), 3)
    loss_fn = losses.average_single_index_loss(single_loss, 2, state_merge)
    enn = cases.index_network()
    _, (state, _) = loss_fn(enn, {}, {"m": {"k": keys}}, None, golden.keys(0))
    index = enn.indexer(jax.random.fold_in(golden.keys(0), 0))
    wanted = jax.vmap(lambda key: jax.random.fold_in(key, index))(keys)
    assert (state["m"]["k"] == wanted).all()


def test_half_precision_losses_are_averaged_in_float32():
    def single_loss(apply, params, state, batch, index):
        return (256 + index).astype(jnp.bfloat16), (state, {"m": jnp.bfloat16(1)})

    loss_fn = losses.average_single_index_loss(single_loss, 4)
    loss, (_, metrics) = loss_fn(cases.index_network(4), {}, {}, None, golden.keys(2))
    indices = [
        int(cases.index_network(4).indexer(jax.random.fold_in(golden.keys(2), s)))
        for s in range(4)
    ]
    rounded = np.asarray(256 + np.array(indices), jnp.bfloat16).astype(float)
    assert loss == rounded.mean()
    assert loss.dtype == metrics["m"].dtype == jnp.float32
