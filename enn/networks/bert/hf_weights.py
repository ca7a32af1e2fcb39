"""Trained BERT weights in Hugging Face's layout."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Callable, Sequence

import chex
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from enn import _checks, _extras
from enn.networks.bert.base import BertConfig, BertInput, bert_small
from enn.networks.bert.bert import make_bert_enn

# Hugging Face's "gelu" is exact; "gelu" of BertConfig is the tanh approximation.
_HIDDEN_ACTS = {
    "gelu": "gelu_exact",
    "gelu_new": "gelu",
    "gelu_pytorch_tanh": "gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}

_MODULES = {
    "word_embeddings": "embeddings.word_embeddings",
    "token_type_embeddings": "embeddings.token_type_embeddings",
    "position_embeddings": "embeddings.position_embeddings",
    "embeddings_ln": "embeddings.LayerNorm",
    "query": "attention.self.query",
    "keys": "attention.self.key",
    "values": "attention.self.value",
    "attention_output_dense": "attention.output.dense",
    "attention_output_ln": "attention.output.LayerNorm",
    "intermediate_output": "intermediate.dense",
    "layer_output": "output.dense",
    "layer_output_ln": "output.LayerNorm",
    "mlm_dense": "cls.predictions.transform.dense",
    "mlm_ln": "cls.predictions.transform.LayerNorm",
    "mlm_bias": "cls.predictions",
    "pooler_dense": "pooler.dense",
}
_LEAVES = {
    "w": "weight",
    "b": "bias",
    "scale": "weight",
    "offset": "bias",
    "embeddings": "weight",
}

_POOLER, _MASKED_LM = "pooler.", "cls.predictions."

_ARCHITECTURE = {
    "model_type": "bert",
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
}

_WITHOUT_PLACE = (
    "embeddings.position_ids",
    "cls.seq_relationship.weight",
    "cls.seq_relationship.bias",
)
_TIED = {
    "cls.predictions.decoder.weight": "embeddings.word_embeddings.weight",
    "cls.predictions.decoder.bias": "cls.predictions.bias",
}


def load_hf_bert(
    path: str | os.PathLike[str],
    key: chex.PRNGKey | None = None,
    ignore: Sequence[str] = (),
    pooling: str = "first",
) -> tuple[BertConfig, hk.Params, hk.State]:
    """Loads a BERT checkpoint in Hugging Face's layout for `make_bert_enn`.

    The lines below are not run as a test: they take the folder of a checkpoint.

        config, bert_params, state = load_hf_bert(folder)
        bert_enn = make_bert_enn(config, is_training=False)
        inputs = load_tokenizer(folder)(["To be or not to be"])
        out, _ = bert_enn.apply(bert_params, state, inputs, jax.random.key(0))

    In a network with a head, from `combine_naive_enn`, `{**params, **bert_params}`
    are initial parameters with BERT's own in their place.

    Nothing is drawn at random unless `key` is given. A checkpoint without a
    masked-LM head, such as a sentence encoder, then gives a configuration with
    `masked_lm=False`, and zeros as that head's parameters: outputs hold no `logits`.
    A checkpoint without a pooler is an error then, unless `pooling` is `"mean"`, since
    the pooler makes the network's output.

    The configuration has the checkpoint's own activation, for which Hugging Face's
    `"gelu"` is `"gelu_exact"` here. The head of next-sentence prediction and stored
    position ids have no place in the network and are left out. All parameters become
    float32.

    Devlin et al., 2019, https://arxiv.org/abs/1810.04805; sentence encoders: Reimers &
    Gurevych, 2019, https://arxiv.org/abs/1908.10084.

    Args:
      path: folder with `config.json` and `model.safetensors`, or a `.safetensors`
        file with `config.json` beside it. Tensor names may start with `bert.`.
      key: draws the pooler and the masked-LM head where the checkpoint has none, as
        `make_bert_enn(config, is_training=False)` draws them.
      ignore: what names of tensors without a place in the network may begin with,
        such as `["classifier."]`.
      pooling: that of the configuration: `"mean"` for most sentence encoders, whose
        file `1_Pooling/config.json` tells.

    Returns:
      `(config, params, state)`, the state being empty.

    Raises:
      ImportError: without safetensors, which the extra `bert` installs.
      ValueError: naming every tensor that is missing, unexpected or of another shape
        than the configuration says, or two that have one place; for a checkpoint
        of another architecture and an unknown `pooling`.
    """
    file = pathlib.Path(path)
    if file.suffix != ".safetensors":
        file = file / "model.safetensors"
    config = _read_config(file.with_name("config.json"))
    config = dataclasses.replace(config, pooling=pooling)
    tensors = _read_tensors(file)
    absent = [
        part
        for part in (_POOLER, _MASKED_LM)
        if not any(name.startswith(part) for name in tensors)
    ]
    problems = _untie(tensors)
    if _POOLER in absent and key is None and pooling == "first":
        problems.append("it has no pooler: give a key to draw one")

    shapes = jax.eval_shape(_init(config), jax.random.key(0))
    if absent and key is not None:
        drawn = _init(config)(key)
    else:
        drawn = jax.tree.map(lambda spec: np.zeros(spec.shape, spec.dtype), shapes)
    params: dict[str, dict[str, jax.Array]] = {module: {} for module in shapes}
    for module, leaf in [(m, leaf) for m, leaves in shapes.items() for leaf in leaves]:
        name = _hf_name(module, leaf)
        value = drawn[module][leaf]
        if name in tensors:
            tensor = tensors.pop(name)
            is_transposed = leaf == "w"
            shape = value.shape[::-1] if is_transposed else value.shape
            if tensor.shape != shape:
                problems.append(
                    f"{name} has shape {list(tensor.shape)}, not {list(shape)}"
                )
            value = tensor.T if is_transposed else tensor
        elif not name.startswith(tuple(absent)):
            problems.append(f"{name} is missing")
        params[module][leaf] = jnp.asarray(value, jnp.float32)

    problems += [
        f"{name} is unexpected: give its beginning in ignore to leave it out"
        for name in tensors
        if not name.startswith(tuple(ignore))
    ]
    if problems:
        raise ValueError(f"{file} does not hold a BERT: {'; '.join(problems)}.")
    masked_lm = key is not None or _MASKED_LM not in absent
    return dataclasses.replace(config, masked_lm=masked_lm), params, {}


def _read_config(file: pathlib.Path) -> BertConfig:
    values = json.loads(file.read_text(encoding="utf-8"))
    for name, supported in _ARCHITECTURE.items():
        if values.get(name, supported) != supported:
            raise ValueError(
                f"{file}: {name} must be {supported!r}, got {values[name]!r}."
            )
    hidden_act = values.get("hidden_act", "gelu")
    _checks.one_of(f"{file}: hidden_act", hidden_act, _HIDDEN_ACTS)
    # BERT-Base, uncased, is what Hugging Face takes for what a file leaves out.
    defaults = bert_small()
    known = {name: values[name] for name in vars(defaults) if name in values}
    known["hidden_act"] = _HIDDEN_ACTS[hidden_act]
    return dataclasses.replace(defaults, **known)


def _read_tensors(file: pathlib.Path) -> dict[str, np.ndarray]:
    """Returns tensors under their present names without the prefix `bert.`."""
    safetensors = _extras.require("safetensors.numpy", "bert")
    tensors: dict[str, np.ndarray] = {}
    stored: dict[str, str] = {}
    for stored_name, tensor in sorted(safetensors.load_file(file).items()):
        name = stored_name.removeprefix("bert.")
        name = name.replace("LayerNorm.gamma", "LayerNorm.weight")
        name = name.replace("LayerNorm.beta", "LayerNorm.bias")
        if name in _WITHOUT_PLACE:
            continue
        if name in stored:
            raise ValueError(
                f"{file} holds two tensors for {name}: {stored[name]} and "
                f"{stored_name}."
            )
        stored[name], tensors[name] = stored_name, tensor
    return tensors


def _untie(tensors: dict[str, np.ndarray]) -> list[str]:
    """Removes second copies of shared tensors; returns those that are not copies."""
    problems = []
    for name, original in _TIED.items():
        if name in tensors:
            copy = tensors.pop(name)
            if not np.array_equal(tensors.setdefault(original, copy), copy):
                problems.append(f"{name} differs from {original}")
    return problems


def _init(config: BertConfig) -> Callable[[chex.PRNGKey], hk.Params]:
    enn = make_bert_enn(config, is_training=False)
    inputs = BertInput(np.zeros([1, 1], np.int32))
    return jax.jit(lambda key: enn.init(key, inputs, key)[0])


def _hf_name(module: str, leaf: str) -> str:
    scope, _, name = module.rpartition("/")
    if scope.endswith("~_bert_layer"):
        name, _, layer = name.rpartition("_")
        return f"encoder.layer.{layer}.{_MODULES[name]}.{_LEAVES[leaf]}"
    return f"{_MODULES[name]}.{_LEAVES[leaf]}"
