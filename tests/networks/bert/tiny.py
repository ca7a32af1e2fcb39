"""The small BERT and its inputs that the tests share."""

from typing import Any

import jax.numpy as jnp

from enn.networks.bert.base import BertConfig, BertInput

IDS = jnp.array([[1, 2, 3, 4, 0], [5, 6, 7, 0, 0]])
INPUTS = BertInput(IDS, jnp.zeros_like(IDS), (IDS != 0).astype(jnp.int32))


def config(**changes: Any) -> BertConfig:
    sizes = {
        "vocab_size": 11,
        "hidden_size": 6,
        "num_hidden_layers": 1,
        "num_attention_heads": 3,
        "intermediate_size": 8,
        "max_position_embeddings": 7,
        "type_vocab_size": 2,
    }
    return BertConfig(**sizes | changes)
