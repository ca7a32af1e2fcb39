"""BERT against the slow and obvious way, in NumPy."""

import jax
import numpy as np
import pytest
from scipy import special

from enn.networks.bert.base import BertInput
from enn.networks.bert.bert import make_bert_enn
from tests.networks.bert.tiny import config
from tests.support.fast import compiled, key, random_params

ACTIVATIONS = {
    "gelu": lambda x: x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    "gelu_exact": lambda x: x * special.ndtr(x),
    "relu": lambda x: np.maximum(x, 0),
    "silu": lambda x: x / (1 + np.exp(-x)),
}

IDS = np.array([[3, 1, 4, 1, 5], [9, 2, 6, 0, 0], [8, 0, 0, 0, 0]])
SEGMENTS = np.array([[0, 0, 1, 1, 1], [0, 1, 0, 0, 0], [1, 0, 0, 0, 0]])
MASK = (IDS != 0).astype(int)


def _dense(params, x):
    return x @ params["w"] + params["b"]


def _norm(params, x):
    centered = x - x.mean(-1, keepdims=True)
    return centered / x.std(-1, keepdims=True) * params["scale"] + params["offset"]


def _softmax(x):
    weights = np.exp(x - x.max())
    return weights / weights.sum()


def _sequence(params, activation, num_layers, num_heads, ids, segments, mask):
    """Outputs for one sequence; attention token by token and head by head."""

    def of(name):
        return params[f"BERT/{name}"]

    words = of("word_embeddings")["embeddings"]
    hidden = _norm(
        of("embeddings_ln"),
        words[ids]
        + of("token_type_embeddings")["embeddings"][segments]
        + of("position_embeddings")["embeddings"][: len(ids)],
    )
    outputs = {}
    for i in range(num_layers):

        def layer(name, i=i):
            return of(f"~_bert_layer/{name}_{i}")

        query, keys, values = (
            np.split(_dense(layer(name), hidden), num_heads, axis=-1)
            for name in ("query", "keys", "values")
        )
        mixed = np.zeros_like(hidden)
        size = hidden.shape[-1] // num_heads
        for head in range(num_heads):
            for token in range(len(ids)):
                scores = keys[head] @ query[head][token] / np.sqrt(size)
                weights = _softmax(np.where(mask, scores, -np.inf))
                columns = slice(head * size, (head + 1) * size)
                mixed[token, columns] = weights @ values[head]
        attended = _norm(
            layer("attention_output_ln"),
            hidden + _dense(layer("attention_output_dense"), mixed),
        )
        wide = activation(_dense(layer("intermediate_output"), attended))
        hidden = _norm(
            layer("layer_output_ln"), attended + _dense(layer("layer_output"), wide)
        )
        outputs[f"hidden_layer_{i}"] = hidden
    predicted = _norm(of("mlm_ln"), activation(_dense(of("mlm_dense"), hidden)))
    outputs["logits"] = predicted @ words.T + of("mlm_bias")["b"]
    outputs["log_probs"] = np.log([_softmax(row) for row in outputs["logits"]])
    outputs["pooled_output"] = np.tanh(_dense(of("pooler_dense"), hidden[0]))
    return outputs


@pytest.mark.strict
@pytest.mark.parametrize(
    ("hidden_act", "num_layers", "num_heads"),
    [("gelu", 2, 3), ("gelu_exact", 1, 2), ("relu", 1, 1), ("silu", 1, 6)],
)
def test_outputs(hidden_act, num_layers, num_heads):
    settings = config(
        hidden_act=hidden_act,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
    )
    enn = make_bert_enn(settings, is_training=False)
    inputs = BertInput(IDS, SEGMENTS, MASK)
    params, state = random_params(enn, inputs)
    out, _ = compiled(enn.apply)(params, state, inputs, key(1))

    exact = jax.tree.map(lambda p: np.asarray(p, np.float64), params)
    for i in range(len(IDS)):
        expected = _sequence(
            exact,
            ACTIVATIONS[hidden_act],
            num_layers,
            num_heads,
            IDS[i],
            SEGMENTS[i],
            MASK[i],
        )
        assert set(expected) == set(out.extra)
        for name, value in expected.items():
            np.testing.assert_allclose(
                out.extra[name][i], value, rtol=1e-3, atol=1e-4, err_msg=name
            )
