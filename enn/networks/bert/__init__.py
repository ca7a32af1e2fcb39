"""BERT as the base of epistemic networks, and heads on its output."""

from enn.networks.bert.base import (
    BertApply,
    BertConfig,
    BertConfigs,
    BertEnn,
    BertInit,
    BertInput,
)
from enn.networks.bert.bert import BERT, make_bert_enn
from enn.networks.bert.cls_heads import (
    AgentConfig,
    CommonOutputLayer,
    make_baseline_head_enn,
    make_head_enn,
)
from enn.networks.bert.hf_weights import load_hf_bert
from enn.networks.bert.tokenizer import load_tokenizer
from enn.networks.combiners import combine_naive_enn, make_optimized_forward

__all__ = [
    "BERT",
    "AgentConfig",
    "BertApply",
    "BertConfig",
    "BertConfigs",
    "BertEnn",
    "BertInit",
    "BertInput",
    "CommonOutputLayer",
    "combine_naive_enn",
    "load_hf_bert",
    "load_tokenizer",
    "make_baseline_head_enn",
    "make_bert_enn",
    "make_head_enn",
    "make_optimized_forward",
]


def __dir__() -> list[str]:
    return sorted(__all__)
