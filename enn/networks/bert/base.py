"""Inputs and configurations of BERT."""

import dataclasses
import enum
from collections.abc import Mapping
from typing import Any, NamedTuple

import chex

from enn import _checks, base
from enn.networks.base import OutputWithPrior

TF_LAYERNORM_EPSILON = 1e-12

HIDDEN_ACTS = ("gelu", "gelu_exact", "relu", "silu")
POOLINGS = ("first", "mean")

_NO_EXTRA: dict[str, chex.Array] = {}


class _InputFields(NamedTuple):
    token_ids: chex.Array
    segment_ids: chex.Array | None
    input_mask: chex.Array | None
    extra: dict[str, chex.Array]


class BertInput(_InputFields):
    """A batch of token sequences.

    >>> import numpy as np
    >>> from enn.networks import bert
    >>> token_ids, mask = np.array([[5, 7, 0]]), np.array([[1, 1, 0]])
    >>> inputs = bert.BertInput(token_ids, input_mask=mask)
    >>> int(inputs.input_mask.sum()), inputs.segment_ids is None
    (2, True)

    Attributes:
      token_ids: positions in the vocabulary, integers `[batch, length]`.
      segment_ids: which segment each token is in, `[batch, length]`; None for
        segment 0 everywhere.
      input_mask: one for tokens and zero for padding, `[batch, length]`; None for no
        padding.
      extra: further inputs by name, which BERT does not read.
    """

    __slots__ = ()

    def __new__(
        cls,
        token_ids: chex.Array,
        segment_ids: chex.Array | None = None,
        input_mask: chex.Array | None = None,
        extra: dict[str, chex.Array] = _NO_EXTRA,
    ) -> "BertInput":
        extra = {} if extra is _NO_EXTRA else extra
        return super().__new__(cls, token_ids, segment_ids, input_mask, extra)


BertEnn = base.EpistemicNetwork[BertInput, OutputWithPrior]
BertApply = base.ApplyFn[BertInput, OutputWithPrior]
BertInit = base.InitFn[BertInput]


@dataclasses.dataclass
class BertConfig:
    """Sizes and rates of a BERT encoder.

    Devlin et al., 2019, https://arxiv.org/abs/1810.04805, section 3.

    >>> from enn.networks import bert
    >>> config = bert.BertConfig(vocab_size=100, hidden_size=32, num_attention_heads=4)
    >>> config.num_hidden_layers, config.hidden_act
    (12, 'gelu')
    >>> bert.BertConfig(vocab_size=100, hidden_size=32, num_attention_heads=5)
    Traceback (most recent call last):
        ...
    ValueError: hidden_size must be a multiple of num_attention_heads, got 32 and 5.

    Attributes:
      vocab_size: number of tokens in the vocabulary.
      hidden_size: width of the encoder; a multiple of `num_attention_heads`.
      num_hidden_layers: number of transformer layers.
      num_attention_heads: number of attention heads in a layer.
      intermediate_size: width of the hidden layer between attention layers.
      hidden_act: its activation: `"gelu"` for the tanh approximation of GELU,
        `"gelu_exact"` for GELU itself, `"relu"` or `"silu"`.
      hidden_dropout_prob: dropout rate of embeddings and layer outputs.
      attention_probs_dropout_prob: dropout rate of attention weights.
      max_position_embeddings: length of the longest sequence.
      type_vocab_size: number of segments.
      initializer_range: standard deviation of initial weights.
      layer_norm_eps: added to the variance in layer normalisation.
      masked_lm: whether outputs hold `logits` and `log_probs` of the masked language
        model. Its parameters exist either way.
      pooling: what the output of a sequence is: `"first"` for tanh of a linear layer
        on its first token; `"mean"` for the mean of the last layer over its tokens,
        without padding, as in sentence encoders (Reimers & Gurevych, 2019,
        https://arxiv.org/abs/1908.10084). The parameters are the same.

    Raises:
      ValueError: for sizes that are not integers >= 1, a hidden size that heads do
        not divide, rates outside [0, 1), unknown activations and poolings.
    """

    vocab_size: int
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 16
    initializer_range: float = 0.02
    layer_norm_eps: float = TF_LAYERNORM_EPSILON
    masked_lm: bool = True
    pooling: str = "first"

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type is int:
                _checks.positive_int(field.name, value)
            elif field.name.endswith("_prob") and not 0 <= value < 1:
                raise ValueError(f"{field.name} must be in [0, 1), got {value}.")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size must be a multiple of num_attention_heads, got "
                f"{self.hidden_size} and {self.num_attention_heads}."
            )
        _checks.one_of("hidden_act", self.hidden_act, HIDDEN_ACTS)
        _checks.one_of("pooling", self.pooling, POOLINGS)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "BertConfig":
        """Returns the configuration with `values` by name, such as a JSON file's.

        Raises:
          ValueError: for names that are not attributes, and as the class does.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        for name in values:
            _checks.one_of("A name in a BertConfig", name, names)
        return cls(**values)


def bert_small() -> BertConfig:
    """Returns BERT-Base, uncased: 12 layers of width 768.

    Devlin et al., 2019, https://arxiv.org/abs/1810.04805, section 3.
    """
    return BertConfig(vocab_size=30522, type_vocab_size=2)


def bert_large() -> BertConfig:
    """Returns BERT-Large, uncased: 24 layers of width 1024.

    Devlin et al., 2019, https://arxiv.org/abs/1810.04805, section 3.
    """
    return BertConfig(
        vocab_size=30522,
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        intermediate_size=4096,
        type_vocab_size=2,
    )


class BertConfigs(enum.Enum):
    """Configurations of the published checkpoints."""

    BERT_SMALL = bert_small()
    BERT_LARGE = bert_large()
