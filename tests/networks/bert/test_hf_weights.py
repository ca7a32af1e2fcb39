import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from enn.networks.bert.bert import make_bert_enn
from enn.networks.bert.cls_heads import AgentConfig, make_head_enn
from enn.networks.bert.hf_weights import load_hf_bert
from enn.networks.combiners import combine_naive_enn
from tests.networks.bert.tiny import INPUTS, config
from tests.support.fast import key, random_params

save_file = pytest.importorskip("safetensors.numpy").save_file

HF_CONFIG = {
    "model_type": "bert",
    "vocab_size": 11,
    "hidden_size": 6,
    "num_hidden_layers": 1,
    "num_attention_heads": 3,
    "intermediate_size": 8,
    "max_position_embeddings": 7,
    "type_vocab_size": 2,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
    "pad_token_id": 0,
    "transformers_version": "5.0.0",
}

LAYER = "encoder.layer.0"
SHAPES = {
    "embeddings.word_embeddings.weight": (11, 6),
    "embeddings.token_type_embeddings.weight": (2, 6),
    "embeddings.position_embeddings.weight": (7, 6),
    "embeddings.LayerNorm.weight": (6,),
    "embeddings.LayerNorm.bias": (6,),
    f"{LAYER}.attention.self.query.weight": (6, 6),
    f"{LAYER}.attention.self.query.bias": (6,),
    f"{LAYER}.attention.self.key.weight": (6, 6),
    f"{LAYER}.attention.self.key.bias": (6,),
    f"{LAYER}.attention.self.value.weight": (6, 6),
    f"{LAYER}.attention.self.value.bias": (6,),
    f"{LAYER}.attention.output.dense.weight": (6, 6),
    f"{LAYER}.attention.output.dense.bias": (6,),
    f"{LAYER}.attention.output.LayerNorm.weight": (6,),
    f"{LAYER}.attention.output.LayerNorm.bias": (6,),
    f"{LAYER}.intermediate.dense.weight": (8, 6),
    f"{LAYER}.intermediate.dense.bias": (8,),
    f"{LAYER}.output.dense.weight": (6, 8),
    f"{LAYER}.output.dense.bias": (6,),
    f"{LAYER}.output.LayerNorm.weight": (6,),
    f"{LAYER}.output.LayerNorm.bias": (6,),
    "pooler.dense.weight": (6, 6),
    "pooler.dense.bias": (6,),
    "cls.predictions.bias": (11,),
    "cls.predictions.transform.dense.weight": (6, 6),
    "cls.predictions.transform.dense.bias": (6,),
    "cls.predictions.transform.LayerNorm.weight": (6,),
    "cls.predictions.transform.LayerNorm.bias": (6,),
}
HEAD = "cls.predictions."
WORDS = "embeddings.word_embeddings.weight"


def _tensors():
    draw = np.random.default_rng(0)
    return {
        name: draw.normal(size=shape).astype(np.float32)
        for name, shape in SHAPES.items()
    }


def _without(start):
    return {k: v for k, v in _tensors().items() if not k.startswith(start)}


def _save(folder, tensors, **changes):
    (folder / "config.json").write_text(json.dumps(HF_CONFIG | changes))
    save_file(tensors, folder / "model.safetensors")
    return folder


def _assert_trees_equal(first, second):
    assert jax.tree.structure(first) == jax.tree.structure(second)
    jax.tree.map(np.testing.assert_array_equal, first, second)


@pytest.fixture
def loaded(tmp_path):
    (tmp_path / "whole").mkdir()
    return load_hf_bert(_save(tmp_path / "whole", _tensors()))


def test_every_tensor_has_its_place(loaded):
    settings, params, state = loaded
    enn = make_bert_enn(settings, is_training=False)
    fresh, fresh_state = jax.eval_shape(enn.init, key(0), INPUTS, key(1))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, fresh)
    assert state == fresh_state == {}
    tensors = _tensors()
    layer = "BERT/~_bert_layer/"
    for module, leaf, name in [
        ("BERT/word_embeddings", "embeddings", WORDS),
        ("BERT/embeddings_ln", "scale", "embeddings.LayerNorm.weight"),
        ("BERT/embeddings_ln", "offset", "embeddings.LayerNorm.bias"),
        (f"{layer}values_0", "b", f"{LAYER}.attention.self.value.bias"),
        (f"{layer}layer_output_ln_0", "scale", f"{LAYER}.output.LayerNorm.weight"),
        ("BERT/mlm_bias", "b", "cls.predictions.bias"),
    ]:
        np.testing.assert_array_equal(params[module][leaf], tensors[name])
    for module, name in [
        (f"{layer}keys_0", f"{LAYER}.attention.self.key.weight"),
        (f"{layer}intermediate_output_0", f"{LAYER}.intermediate.dense.weight"),
        (f"{layer}layer_output_0", f"{LAYER}.output.dense.weight"),
        ("BERT/pooler_dense", "pooler.dense.weight"),
    ]:
        np.testing.assert_array_equal(params[module]["w"], tensors[name].T)
    leaves = {np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(params)}
    assert len(leaves) == len(tensors)


def test_configuration(loaded):
    expected = config(hidden_act="gelu_exact", layer_norm_eps=1e-6)
    assert loaded[0] == expected


@pytest.mark.parametrize(
    ("hidden_act", "expected"),
    [("gelu_new", "gelu"), ("relu", "relu"), ("swish", "silu")],
)
def test_activation(tmp_path, hidden_act, expected):
    folder = _save(tmp_path, _tensors(), hidden_act=hidden_act)
    assert load_hf_bert(folder)[0].hidden_act == expected


def test_what_a_configuration_leaves_out_is_as_in_bert_base(tmp_path):
    _save(tmp_path, _tensors())
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(
        ValueError, match=r"word_embeddings.*\[11, 6\], not \[30522, 768"
    ):
        load_hf_bert(tmp_path)


def test_loads_a_file_with_its_configuration_beside_it(tmp_path, loaded):
    file = _save(tmp_path, _tensors()) / "model.safetensors"
    file = file.rename(tmp_path / "weights.safetensors")
    for path in (file, str(file)):
        _assert_trees_equal(load_hf_bert(path)[1], loaded[1])


def _with_prefix(tensors):
    return {
        name if name.startswith("cls.") else f"bert.{name}": value
        for name, value in tensors.items()
    }


def _with_old_norm_names(tensors):
    return {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): value
        for name, value in tensors.items()
    }


def _with_tolerated_extras(tensors):
    return tensors | {
        "embeddings.position_ids": np.arange(7)[None],
        "cls.seq_relationship.weight": np.ones([2, 6], np.float32),
        "cls.seq_relationship.bias": np.ones([2], np.float32),
        "cls.predictions.decoder.weight": tensors[WORDS],
        "cls.predictions.decoder.bias": tensors["cls.predictions.bias"],
    }


def _with_bias_at_the_decoder(tensors):
    bias = tensors.pop("cls.predictions.bias")
    return tensors | {"cls.predictions.decoder.bias": bias}


@pytest.mark.parametrize(
    "change",
    [
        _with_prefix,
        _with_old_norm_names,
        _with_tolerated_extras,
        _with_bias_at_the_decoder,
    ],
)
def test_layouts_that_mean_the_same(tmp_path, loaded, change):
    folder = _save(tmp_path, change(_tensors()))
    _assert_trees_equal(load_hf_bert(folder)[1], loaded[1])


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float16, np.float64])
def test_parameters_are_float32_whatever_is_stored(tmp_path, loaded, dtype):
    tensors = {name: value.astype(dtype) for name, value in _tensors().items()}
    params = load_hf_bert(_save(tmp_path, tensors))[1]
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    jax.tree.map(
        lambda *p: np.testing.assert_allclose(*p, rtol=1e-2), params, loaded[1]
    )


def test_loaded_parameters_take_their_place_under_a_head(loaded):
    settings, bert_params, state = loaded
    bert_enn = make_bert_enn(settings, is_training=False)
    head = make_head_enn("dropout", 2, AgentConfig((5,)))
    enn = combine_naive_enn(head, bert_enn)
    params, _ = random_params(enn, INPUTS)
    params = {**params, **bert_params}
    out, _ = jax.jit(enn.apply)(params, state, INPUTS, key(2))
    features, _ = jax.jit(bert_enn.apply)(bert_params, state, INPUTS, key(2))
    expected, _ = jax.jit(head.apply)(params, state, features.preds, key(2))
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)


def test_without_masked_lm_head_the_head_is_not_computed(tmp_path, loaded):
    settings, params, _ = load_hf_bert(_save(tmp_path, _without(HEAD)))
    assert settings.masked_lm is False
    for name in ("mlm_dense", "mlm_ln", "mlm_bias"):
        for leaf in params[f"BERT/{name}"].values():
            np.testing.assert_array_equal(leaf, 0)
    outs = [
        jax.jit(make_bert_enn(c, is_training=False).apply)(p, {}, INPUTS, key(0))[0]
        for c, p in ((settings, params), loaded[:2])
    ]
    assert "logits" not in outs[0].extra
    np.testing.assert_allclose(outs[0].train, outs[1].train, rtol=1e-6)


@pytest.mark.slow
def test_key_draws_what_is_missing_as_init_does(tmp_path, loaded):
    tensors = {k: v for k, v in _without(HEAD).items() if "pooler" not in k}
    settings, params, _ = load_hf_bert(_save(tmp_path, tensors), key=key(3))
    assert settings.masked_lm is True
    enn = make_bert_enn(settings, is_training=False)
    fresh, _ = jax.jit(enn.init)(key(3), INPUTS, key(0))
    for module in params:
        is_drawn = "mlm" in module or "pooler" in module
        _assert_trees_equal(params[module], (fresh if is_drawn else loaded[1])[module])


def test_without_pooler_a_key_is_needed(tmp_path):
    with pytest.raises(ValueError, match="no pooler: give a key"):
        load_hf_bert(_save(tmp_path, _without("pooler.")))


def test_mean_pooling_needs_no_pooler(tmp_path, loaded):
    folder = _save(tmp_path, _without("pooler."))
    settings, params, _ = load_hf_bert(folder, pooling="mean")
    assert settings == config(
        hidden_act="gelu_exact", layer_norm_eps=1e-6, pooling="mean"
    )
    pooler = {"BERT/pooler_dense": {"w": np.zeros([6, 6]), "b": np.zeros(6)}}
    _assert_trees_equal(params, loaded[1] | pooler)


def test_tensors_to_ignore(tmp_path, loaded):
    tensors = _tensors() | {"classifier.weight": np.ones([2, 6], np.float32)}
    folder = _save(tmp_path, tensors)
    with pytest.raises(
        ValueError, match=r"classifier\.weight is unexpected: .* ignore"
    ):
        load_hf_bert(folder)
    _assert_trees_equal(load_hf_bert(folder, ignore=["classifier."])[1], loaded[1])


def test_every_problem_is_named(tmp_path):
    tensors = _without(f"{LAYER}.attention.self.query.bias")
    tensors = {k: v for k, v in tensors.items() if k != "pooler.dense.bias"}
    tensors[f"{LAYER}.output.dense.weight"] = np.ones([6, 9], np.float32)
    tensors[WORDS] = np.ones([12, 6], np.float32)
    tensors["encoder.layer.1.output.dense.bias"] = np.ones([6], np.float32)
    tensors["cls.predictions.decoder.weight"] = np.ones([11, 6], np.float32)
    with pytest.raises(ValueError, match="does not hold a BERT") as error:
        load_hf_bert(_save(tmp_path, tensors))
    for problem in (
        "model.safetensors",
        f"{LAYER}.attention.self.query.bias is missing",
        "pooler.dense.bias is missing",
        f"{LAYER}.output.dense.weight has shape [6, 9], not [6, 8]",
        f"{WORDS} has shape [12, 6], not [11, 6]",
        "encoder.layer.1.output.dense.bias is unexpected",
        f"cls.predictions.decoder.weight differs from {WORDS}",
    ):
        assert problem in str(error.value)
    assert str(error.value).count(";") == 5


@pytest.mark.parametrize(
    ("name", "twin"),
    [
        ("pooler.dense.bias", "bert.pooler.dense.bias"),
        ("embeddings.LayerNorm.weight", "embeddings.LayerNorm.gamma"),
    ],
)
def test_two_tensors_of_one_place_are_both_named(tmp_path, name, twin):
    tensors = _tensors() | {twin: np.ones([6], np.float32)}
    with pytest.raises(ValueError, match="two tensors") as error:
        load_hf_bert(_save(tmp_path, tensors))
    assert name in str(error.value)
    assert twin in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "roberta"}, "model_type must be 'bert', got 'roberta'"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ({"is_decoder": True}, "is_decoder must be False"),
        ({"hidden_act": "mish"}, "hidden_act must be one of 'gelu', .* got 'mish'"),
        ({"num_attention_heads": 4}, "hidden_size must be a multiple"),
    ],
)
def test_other_architectures(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        load_hf_bert(_save(tmp_path, _tensors(), **changes))


def test_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    with pytest.raises(ImportError, match=r'pip install "enn\[bert\]"'):
        load_hf_bert(_save(tmp_path, _tensors()))


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        load_hf_bert(tmp_path)
