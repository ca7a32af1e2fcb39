import functools

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from enn.networks.bert.base import BertConfig, BertInput
from enn.networks.bert.bert import BERT, make_bert_enn
from tests.networks.bert.tiny import IDS, INPUTS, config
from tests.support import golden
from tests.support.cost import flops, flops_at_indices
from tests.support.fast import assert_output_starts, key, random_params


@functools.cache
def _enn(is_training=False, **changes):
    return make_bert_enn(config(**changes), is_training)


@functools.cache
def _params(is_training=False, **changes):
    enn = _enn(is_training, **changes)
    params, state = jax.jit(enn.init)(key(0), INPUTS, key(1))
    assert state == {}
    return params


@functools.cache
def _compiled(is_training=False, **changes):
    return jax.jit(_enn(is_training, **changes).apply)


def _init_and_apply(enn):
    def run(init_key, inputs, init_index, index):
        params, state = enn.init(init_key, inputs, init_index)
        return params, state, *enn.apply(params, state, inputs, index)

    return jax.jit(run)


def _output(inputs=INPUTS, index=0, params=None, is_training=False, **changes):
    params = _params(is_training) if params is None else params
    return _compiled(is_training, **changes)(params, {}, inputs, key(index))[0]


def _any_nonzero(tree):
    return any(np.any(leaf) for leaf in jax.tree.leaves(tree))


@pytest.mark.slow
def test_golden_values():
    enn = make_bert_enn(
        BertConfig(
            vocab_size=50,
            hidden_size=12,
            num_hidden_layers=2,
            num_attention_heads=3,
            intermediate_size=16,
            max_position_embeddings=16,
            type_vocab_size=2,
        ),
        is_training=False,
    )
    ids = jax.random.randint(key(1), (3, 10), 0, 50)
    mask = jnp.ones_like(ids).at[1, 6:].set(0)
    inputs = BertInput(ids, jnp.zeros_like(ids), mask)
    params, _, out, _ = _init_and_apply(enn)(key(0), inputs, key(2), key(2))
    report = {
        "params": params,
        "train": out.train,
        "extra_keys": np.array(len(out.extra)),
        "log_probs": out.extra["log_probs"],
    }
    golden.assert_matches("bert_small", report)


@pytest.mark.parametrize(
    ("is_training", "expected"),
    [(False, [0.027357, -0.049640]), (True, [0.054977, -0.078384])],
)
def test_anchors(is_training, expected):
    index = _enn(is_training).indexer(key(3))
    args = (_params(is_training), {}, INPUTS, index)
    out, new_state = _compiled(is_training)(*args)
    assert_output_starts(out, expected, [0, 0])
    assert new_state == {}


def test_parameter_tree():
    norm = {"scale": (6,), "offset": (6,)}
    square = {"w": (6, 6), "b": (6,)}
    layer = "BERT/~_bert_layer/"
    assert jax.tree.map(jnp.shape, _params()) == {
        "BERT/word_embeddings": {"embeddings": (11, 6)},
        "BERT/token_type_embeddings": {"embeddings": (2, 6)},
        "BERT/position_embeddings": {"embeddings": (7, 6)},
        "BERT/embeddings_ln": norm,
        f"{layer}query_0": square,
        f"{layer}keys_0": square,
        f"{layer}values_0": square,
        f"{layer}attention_output_dense_0": square,
        f"{layer}attention_output_ln_0": norm,
        f"{layer}intermediate_output_0": {"w": (6, 8), "b": (8,)},
        f"{layer}layer_output_0": {"w": (8, 6), "b": (6,)},
        f"{layer}layer_output_ln_0": norm,
        "BERT/mlm_dense": square,
        "BERT/mlm_ln": norm,
        "BERT/mlm_bias": {"b": (11,)},
        "BERT/pooler_dense": square,
    }


@pytest.mark.strict
def test_outputs_by_name():
    out = _output()
    assert jax.tree.map(jnp.shape, out.extra) == {
        "hidden_layer_0": (2, 5, 6),
        "logits": (2, 5, 11),
        "log_probs": (2, 5, 11),
        "pooled_output": (2, 6),
    }
    assert out.train.dtype == jnp.float32
    np.testing.assert_array_equal(out.train, out.extra["pooled_output"])
    np.testing.assert_array_equal(out.prior, np.zeros([2, 6]))
    np.testing.assert_allclose(jnp.exp(out.extra["log_probs"]).sum(-1), 1, rtol=1e-5)


@pytest.mark.strict
@settings(deadline=None, max_examples=20)
@given(
    ids=st.lists(st.integers(0, 10), min_size=5, max_size=5),
    padding=st.lists(st.integers(0, 10), min_size=5, max_size=5),
    length=st.integers(1, 5),
)
def test_padding_changes_nothing_before_it(ids, padding, length):
    mask = np.arange(5) < length
    token_ids = np.stack([ids, np.where(mask, ids, padding)])
    out = _output(BertInput(token_ids, 0 * token_ids, np.stack([mask, mask]) * 1))
    first, second = out.extra["hidden_layer_0"][:, :length]
    np.testing.assert_allclose(first, second, rtol=1e-5, atol=1e-5)


def test_every_token_position_and_segment_counts():
    # At the scale of initial weights the differences would drown in rounding.
    params, _ = random_params(_enn(), INPUTS)
    ones = jnp.ones_like(IDS)
    original = _output(BertInput(IDS, 0 * IDS, ones), params=params).train
    for changed in (
        BertInput(IDS.at[:, 2].set(9), 0 * IDS, ones),
        BertInput(IDS[:, ::-1].at[:, 0].set(IDS[:, 0]), 0 * IDS, ones),
        BertInput(IDS, (0 * IDS).at[:, 3].set(1), ones),
        BertInput(IDS, 0 * IDS, ones.at[:, 1].set(0)),
    ):
        difference = _output(changed, params=params).train - original
        assert np.abs(difference).max(axis=-1).min() > 1e-3


def test_missing_mask_and_segments_are_ones_and_zeros():
    given = _output(BertInput(IDS, jnp.zeros_like(IDS), jnp.ones_like(IDS)))
    for inputs in (BertInput(IDS), BertInput(IDS, None, None)):
        np.testing.assert_array_equal(_output(inputs).train, given.train)


@pytest.mark.parametrize("dtype", [bool, np.int8, np.float32])
def test_masks_of_any_dtype(dtype):
    mask = np.asarray(INPUTS.input_mask).astype(dtype)
    out = _output(INPUTS._replace(input_mask=mask))
    np.testing.assert_allclose(out.train, _output().train, rtol=1e-5, atol=1e-6)


def test_a_fully_masked_row_is_finite():
    out = _output(INPUTS._replace(input_mask=0 * IDS))
    assert np.isfinite(out.train).all()


@pytest.mark.parametrize("compile_", [lambda fn: fn, jax.jit])
def test_sequences_longer_than_the_position_embeddings(compile_):
    # Later positions silently shared the last embedding.
    inputs = BertInput(jnp.zeros([2, 8], jnp.int32))
    with pytest.raises(ValueError, match=r"length 8.*max_position_embeddings = 7"):
        compile_(_enn().init)(key(0), inputs, key(1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input_mask": 0.5 * jnp.ones(IDS.shape)}, r"input_mask .*\[0, 2\), got 0.5"),
        ({"input_mask": 2 * IDS}, r"input_mask must hold integers in \[0, 2\)"),
        ({"token_ids": IDS + 5}, r"token_ids must hold integers in \[0, 11\), got 11"),
        ({"token_ids": IDS - 1}, r"token_ids .* got -1"),
        ({"segment_ids": IDS}, r"segment_ids must hold integers in \[0, 2\), got 2"),
        ({"token_ids": IDS[0]}, r"token_ids must have shape \[batch, length\]"),
        ({"input_mask": IDS[:, :3]}, r"input_mask must have shape \[2, 5\]"),
        ({"segment_ids": IDS[:1]}, r"segment_ids must have shape \[2, 5\]"),
    ],
)
def test_wrong_inputs(changes, message):
    with pytest.raises(ValueError, match=message):
        _enn().apply(_params(), {}, INPUTS._replace(**changes), key(0))


def test_heads_that_do_not_divide_the_hidden_size():
    def forward(ids):
        return BERT(11, 6, 1, 4, 8, 0.1, 0.1, 7, 2, 0.02)(ids)

    with pytest.raises(ValueError, match=r"hidden_size.*num_attention_heads.*6 and 4"):
        hk.transform(forward).init(key(0), IDS)


def test_module_holds_its_settings():
    def forward():
        module = BERT(11, 6, 1, 3, 8, 0.1, 0.2, 7, 2, 0.02, name="encoder")
        return (
            module.vocab_size,
            module.attention_probs_dropout_prob,
            (
                module.size_per_head,
                module.name,
            ),
        )

    settings = hk.transform(forward).apply({}, None)
    assert settings == (11, 0.2, (2, "encoder"))


def test_dropout_follows_the_index_in_training_only():
    params = _params()
    outs = [_output(index=z, params=params, is_training=True).train for z in (1, 1, 2)]
    np.testing.assert_array_equal(outs[0], outs[1])
    assert np.abs(outs[0] - outs[2]).max() > 1e-3
    np.testing.assert_array_equal(_output(index=1).train, _output(index=2).train)


def test_training_without_dropout_is_evaluation():
    rates = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    out = _output(params=_params(), is_training=True, **rates)
    np.testing.assert_allclose(out.train, _output().train, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_initial_parameters_are_those_of_the_original_in_either_mode():
    first, second = _params(False), _params(True)
    np.testing.assert_array_equal(
        *(p["BERT/word_embeddings"]["embeddings"] for p in (first, second))
    )
    query = "BERT/~_bert_layer/query_0"
    assert not np.array_equal(first[query]["w"], second[query]["w"])


def test_the_mean_over_tokens_leaves_parameters_as_they_are():
    params = _params(pooling="mean")
    jax.tree.map(np.testing.assert_array_equal, params, _params())
    out = _output(params=params, pooling="mean")
    hidden = np.asarray(out.extra["hidden_layer_0"])
    means = np.stack([hidden[0, :4].mean(axis=0), hidden[1, :3].mean(axis=0)])
    np.testing.assert_allclose(out.train, means, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(out.train, out.extra["pooled_output"])


def test_padding_does_not_change_the_mean_over_tokens():
    params, _ = random_params(_enn(), INPUTS)
    short = BertInput(IDS[:1, :4])
    ids = jnp.concatenate([IDS[:1, :4], jnp.full([1, 2], 9)], axis=1)
    mask = (jnp.arange(6) < 4)[None]
    padded = BertInput(ids, None, mask)
    out, wanted = (
        _output(x, params=params, pooling="mean").train for x in (padded, short)
    )
    np.testing.assert_allclose(out, wanted, rtol=1e-5, atol=1e-6)


def test_the_mean_of_no_token_is_zero():
    out = _output(INPUTS._replace(input_mask=0 * IDS), pooling="mean")
    np.testing.assert_array_equal(out.train, np.zeros([2, 6]))


@pytest.mark.slow
def test_gradients_of_the_mean_reach_every_layer_but_none_of_padding():
    params, _ = random_params(_enn(), INPUTS)
    apply = _compiled(pooling="mean")

    def loss(params):
        return (apply(params, {}, INPUTS, key(0))[0].train ** 2).sum()

    gradients = jax.jit(jax.grad(loss))(params)
    unused = {"BERT/pooler_dense", "BERT/mlm_dense", "BERT/mlm_ln", "BERT/mlm_bias"}
    still = {name for name, leaves in gradients.items() if not _any_nonzero(leaves)}
    assert still == unused
    words = gradients["BERT/word_embeddings"]["embeddings"]
    positions = gradients["BERT/position_embeddings"]["embeddings"]
    np.testing.assert_array_equal(words[0], 0)
    np.testing.assert_array_equal(positions[4:], 0)
    assert (np.abs(positions[:4]).max(axis=1) > 1e-4).all()


@pytest.mark.slow
def test_masked_lm_head_can_be_left_out_but_keeps_its_parameters():
    without = _enn(masked_lm=False)
    params = _params(masked_lm=False)
    jax.tree.map(np.testing.assert_array_equal, params, _params())
    out = _output(params=params, masked_lm=False)
    assert set(out.extra) == {"hidden_layer_0", "pooled_output"}
    np.testing.assert_allclose(out.train, _output().train, rtol=1e-5, atol=1e-6)
    saved = flops(_enn().apply, params, {}, INPUTS, key(0)) - flops(
        without.apply, params, {}, INPUTS, key(0)
    )
    assert saved > 2 * IDS.size * 6 * 11


@pytest.mark.parametrize("masked_lm", [True, False])
def test_many_indices_run_the_encoder_once(masked_lm):
    enn = _enn(masked_lm=masked_lm)
    many, one = (flops_at_indices(enn, INPUTS, n) for n in (100, 1))
    assert many <= 1.01 * one
