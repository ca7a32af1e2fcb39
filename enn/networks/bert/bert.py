"""BERT, the bidirectional transformer encoder, as an epistemic network."""

import dataclasses
from collections.abc import Callable

import chex
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from enn import _checks
from enn.networks.base import OutputWithPrior
from enn.networks.bert.base import (
    TF_LAYERNORM_EPSILON,
    BertConfig,
    BertEnn,
    BertInput,
)
from enn.networks.utils import wrap_stochastic_fn_as_enn

_ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": jax.nn.gelu,
    "gelu_exact": lambda x: jax.nn.gelu(x, approximate=False),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}


def make_bert_enn(
    bert_config: BertConfig, is_training: bool, shared_dropout: bool = False
) -> BertEnn:
    """Returns BERT as a network whose index is the PRNG key of its dropout.

    Without training there is no dropout: the output does not depend on the index,
    and under `jax.vmap` over indices it is computed once.

    Initial parameters differ between `is_training` True and False, since dropout
    draws keys in between. Numbers follow the original `enn`.

    Devlin et al., 2019, https://arxiv.org/abs/1810.04805; dropout as a posterior: Gal
    and Ghahramani, 2016, https://arxiv.org/abs/1506.02142.

    >>> import jax, numpy as np
    >>> from enn.networks import bert
    >>> sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    >>> config = bert.BertConfig(vocab_size=100, intermediate_size=16, **sizes)
    >>> enn = bert.make_bert_enn(config, is_training=False)
    >>> inputs, key = bert.BertInput(np.array([[5, 7, 0]])), jax.random.key(0)
    >>> params, _ = jax.eval_shape(enn.init, key, inputs, key)
    >>> sum(leaf.size for leaf in jax.tree.leaves(params))  # Parameters
    5900

    Args:
      bert_config: sizes and rates.
      is_training: whether dropout is on.
      shared_dropout: whether all rows of a batch share their masks, so that an index is
        one function and predictions at it are joint. By default every row has masks of
        its own, as in the original `enn`.

    Returns:
      Network on `BertInput`; see `BERT` for its output and its errors.
    """
    settings = dataclasses.asdict(bert_config)

    def forward(inputs: BertInput) -> OutputWithPrior:
        return BERT(**settings)(
            inputs.token_ids, inputs.segment_ids, inputs.input_mask, is_training
        )

    return wrap_stochastic_fn_as_enn(forward, shared_dropout)


class BERT(hk.Module):
    """BERT encoder with a pooled output and a masked language model head.

    Devlin et al., 2019, BERT: Pre-training of deep bidirectional transformers for
    language understanding, https://arxiv.org/abs/1810.04805. Takes the settings of
    `BertConfig`, which are also its attributes.

    Raises:
      ValueError: as `BertConfig` does.
    """

    def __init__(
        self,
        vocab_size: int,
        hidden_size: int,
        num_hidden_layers: int,
        num_attention_heads: int,
        intermediate_size: int,
        hidden_dropout_prob: float,
        attention_probs_dropout_prob: float,
        max_position_embeddings: int,
        type_vocab_size: int,
        initializer_range: float,
        name: str = "BERT",
        hidden_act: str = "gelu",
        layer_norm_eps: float = TF_LAYERNORM_EPSILON,
        masked_lm: bool = True,
        pooling: str = "first",
    ):
        super().__init__(name=name)
        self.config = BertConfig(
            vocab_size,
            hidden_size,
            num_hidden_layers,
            num_attention_heads,
            intermediate_size,
            hidden_act,
            hidden_dropout_prob,
            attention_probs_dropout_prob,
            max_position_embeddings,
            type_vocab_size,
            initializer_range,
            layer_norm_eps,
            masked_lm,
            pooling,
        )
        vars(self).update(dataclasses.asdict(self.config))
        self.size_per_head = hidden_size // num_attention_heads

    def __call__(
        self,
        input_ids: chex.Array,
        token_type_ids: chex.Array | None = None,
        input_mask: chex.Array | None = None,
        is_training: bool = True,
    ) -> OutputWithPrior:
        """Encodes a batch of token sequences.

        Args:
          input_ids: positions in the vocabulary, integers `[batch, length]`.
          token_type_ids: segment of each token, `[batch, length]`; zeros by default.
          input_mask: one for tokens and zero for padding, `[batch, length]`; ones by
            default.
          is_training: whether dropout is on; it takes keys from Haiku.

        Returns:
          `OutputWithPrior` whose `train` is the pooled output `[batch, hidden_size]`,
          see `pooling` of `BertConfig`; zeros for the mean of no token. Its `extra`
          holds `pooled_output`, `hidden_layer_i` of every layer
          `[batch, length, hidden_size]` and, with `masked_lm`, `logits` and
          `log_probs` `[batch, length, vocab_size]`.

        Raises:
          ValueError: for a sequence longer than `max_position_embeddings`, shapes
            that differ, and, outside `jax.jit`, ids that are out of range or a mask
            that holds anything but zeros and ones.
        """
        config = self.config
        if token_type_ids is None:
            token_type_ids = jnp.zeros_like(input_ids)
        if input_mask is None:
            input_mask = jnp.ones_like(input_ids)
        _check_inputs(config, input_ids, token_type_ids, input_mask)

        words = self._embed("word", config.vocab_size)
        types = self._embed("token_type", config.type_vocab_size)
        positions = self._embed("position", config.max_position_embeddings)
        hidden = words(jnp.asarray(input_ids)) + types(jnp.asarray(token_type_ids))
        hidden = hidden + positions.embeddings[None, : hidden.shape[1]]
        hidden = self._layer_norm("embeddings_ln")(hidden)
        hidden = _dropout(hidden, config.hidden_dropout_prob, is_training)

        masked = 1 - jnp.asarray(input_mask, jnp.int32)
        attention_bias = -1e30 * masked[:, None, None, :]
        extra: dict[str, chex.Array] = {}
        for layer in range(config.num_hidden_layers):
            hidden = self._bert_layer(hidden, attention_bias, layer, is_training)
            extra[f"hidden_layer_{layer}"] = hidden
        if config.masked_lm or hk.running_init():
            logits = self._masked_lm_logits(hidden, words.embeddings)
            extra["logits"] = logits
            extra["log_probs"] = jax.nn.log_softmax(logits)
        pooler = self._linear("pooler_dense", config.hidden_size)
        pooled = jnp.tanh(pooler(hidden[:, 0]))
        if config.pooling == "mean":
            weights = jnp.asarray(input_mask, hidden.dtype)[..., None]
            num_tokens = jnp.maximum(weights.sum(axis=1), 1)
            pooled = (hidden * weights).sum(axis=1) / num_tokens
        extra["pooled_output"] = pooled
        return OutputWithPrior(pooled, jnp.zeros_like(pooled), extra)

    # The name is a scope of the parameters: they are called BERT/~_bert_layer/...
    def _bert_layer(
        self,
        inputs: jax.Array,
        attention_bias: jax.Array,
        layer: int,
        is_training: bool,
    ) -> jax.Array:
        config = self.config
        query, keys, values = (
            self._split_heads(
                self._linear(f"{name}_{layer}", config.hidden_size)(inputs)
            )
            for name in ("query", "keys", "values")
        )
        scores = jnp.einsum("btnd,bsnd->bnts", query, keys)
        scores = scores * self.size_per_head**-0.5 + attention_bias
        weights = jax.nn.softmax(scores)
        weights = _dropout(weights, config.attention_probs_dropout_prob, is_training)
        mixed = jnp.einsum("bnts,bsnd->btnd", weights, values).reshape(inputs.shape)

        dense = self._linear(f"attention_output_dense_{layer}", config.hidden_size)
        hidden = _dropout(dense(mixed), config.hidden_dropout_prob, is_training)
        attention = self._layer_norm(f"attention_output_ln_{layer}")(hidden + inputs)

        dense = self._linear(f"intermediate_output_{layer}", config.intermediate_size)
        hidden = _ACTIVATIONS[config.hidden_act](dense(attention))
        dense = self._linear(f"layer_output_{layer}", config.hidden_size)
        hidden = _dropout(dense(hidden), config.hidden_dropout_prob, is_training)
        return self._layer_norm(f"layer_output_ln_{layer}")(hidden + attention)

    @hk.transparent
    def _masked_lm_logits(
        self, hidden: jax.Array, word_embeddings: jax.Array
    ) -> jax.Array:
        dense = self._linear("mlm_dense", self.config.hidden_size)
        hidden = _ACTIVATIONS[self.config.hidden_act](dense(hidden))
        hidden = self._layer_norm("mlm_ln")(hidden)
        logits = hidden @ word_embeddings.T
        return hk.Bias(bias_dims=[-1], name="mlm_bias")(logits)

    @hk.transparent
    def _embed(self, name: str, size: int) -> hk.Embed:
        w_init = hk.initializers.TruncatedNormal(self.config.initializer_range)
        return hk.Embed(
            size, self.config.hidden_size, w_init=w_init, name=f"{name}_embeddings"
        )

    @hk.transparent
    def _linear(self, name: str, size: int) -> hk.Linear:
        w_init = hk.initializers.TruncatedNormal(self.config.initializer_range)
        return hk.Linear(size, w_init=w_init, name=name)

    @hk.transparent
    def _layer_norm(self, name: str) -> hk.LayerNorm:
        return hk.LayerNorm(-1, True, True, self.config.layer_norm_eps, name=name)

    @hk.transparent
    def _split_heads(self, hidden: jax.Array) -> jax.Array:
        return hidden.reshape(*hidden.shape[:2], -1, self.size_per_head)


def _dropout(inputs: jax.Array, rate: float, is_training: bool) -> jax.Array:
    return hk.dropout(hk.next_rng_key(), rate, inputs) if is_training else inputs


def _check_inputs(
    config: BertConfig,
    token_ids: chex.Array,
    segment_ids: chex.Array,
    input_mask: chex.Array,
) -> None:
    _checks.shape("token_ids", token_ids, (None, None), "[batch, length]")
    shape = jnp.shape(token_ids)
    if shape[1] > config.max_position_embeddings:
        raise ValueError(
            f"token_ids has length {shape[1]}, which is more than "
            f"max_position_embeddings = {config.max_position_embeddings}."
        )
    for name, ids, size in (
        ("token_ids", token_ids, config.vocab_size),
        ("segment_ids", segment_ids, config.type_vocab_size),
        ("input_mask", input_mask, 2),
    ):
        _checks.shape(name, ids, shape, f"{list(shape)}, that of token_ids")
        if _checks.is_concrete(ids):
            values = np.asarray(ids)
            wrong = ~np.isin(values, np.arange(size))
            if wrong.any():
                raise ValueError(
                    f"{name} must hold integers in [0, {size}), got {values[wrong][0]}."
                )
