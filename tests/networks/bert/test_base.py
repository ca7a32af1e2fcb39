import dataclasses

import jax
import numpy as np
import pytest

from enn.networks.bert import base
from tests.networks.bert.tiny import config


def test_published_configurations():
    small = base.BertConfigs.BERT_SMALL.value
    large = base.BertConfigs.BERT_LARGE.value
    assert list(base.BertConfigs.__members__) == ["BERT_SMALL", "BERT_LARGE"]
    assert small == base.bert_small() == base.BertConfig(30522, type_vocab_size=2)
    assert large == base.bert_large()
    assert dataclasses.astuple(small)[:5] == (30522, 768, 12, 12, 3072)
    assert dataclasses.astuple(large)[:5] == (30522, 1024, 24, 16, 4096)
    assert (large.max_position_embeddings, large.type_vocab_size) == (512, 2)


def test_configurations_compare_by_value():
    assert config() == config()
    assert config() != config(hidden_size=9)


def test_from_dict_takes_the_published_file_format():
    values = {
        "attention_probs_dropout_prob": 0.1,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "hidden_size": 768,
        "initializer_range": 0.02,
        "intermediate_size": 3072,
        "max_position_embeddings": 512,
        "num_attention_heads": 12,
        "num_hidden_layers": 12,
        "type_vocab_size": 2,
        "vocab_size": 30522,
    }
    assert base.BertConfig.from_dict(values) == base.bert_small()


def test_from_dict_names_what_it_does_not_know():
    with pytest.raises(ValueError, match=r"vocab_size.*got 'hiden_size'"):
        base.BertConfig.from_dict({"vocab_size": 5, "hiden_size": 8})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 8}, "hidden_size must be a multiple .* 8 and 3"),
        ({"vocab_size": 0}, "vocab_size must be an integer >= 1, got 0"),
        ({"num_hidden_layers": 1.5}, "num_hidden_layers"),
        ({"hidden_dropout_prob": 1.0}, r"hidden_dropout_prob must be in \[0, 1\)"),
        ({"attention_probs_dropout_prob": -0.1}, "attention_probs_dropout_prob"),
        ({"hidden_act": "swoosh"}, "'gelu', 'gelu_exact', 'relu', 'silu'; got"),
        ({"pooling": "max"}, "pooling must be one of 'first', 'mean'; got 'max'"),
    ],
)
def test_configurations_out_of_range(changes, message):
    with pytest.raises(ValueError, match=message):
        config(**changes)


def test_inputs_do_not_share_their_extra():
    ids = np.zeros([1, 2], np.int32)
    first, second = base.BertInput(ids, ids, ids), base.BertInput(ids, ids, ids)
    first.extra["label"] = ids
    assert second.extra == {}
    assert base.BertInput(ids).extra == {}


def test_inputs_are_a_pytree_that_keeps_its_type():
    ids = np.zeros([2, 3], np.int32)
    inputs = base.BertInput(ids, extra={"label": ids[:, 0]})
    mapped = jax.vmap(lambda row: jax.tree.map(lambda a: a + 1, row))(inputs)
    assert isinstance(mapped, base.BertInput)
    assert mapped.input_mask is None
    np.testing.assert_array_equal(mapped.token_ids, ids + 1)
    np.testing.assert_array_equal(mapped.extra["label"], [1, 1])
