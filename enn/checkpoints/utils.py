"""Loading checkpoints and drawing samples from them."""

from enn.checkpoints.files import init_from_file, load_from_file
from enn.checkpoints.samplers import (
    EnnSampler,
    average_logits,
    load_checkpoint_as_logit_fn,
    make_enn_sampler_from_checkpoint,
    make_epinet_forward_fn,
    make_epinet_sampler_from_checkpoint,
)

__all__ = [
    "EnnSampler",
    "average_logits",
    "init_from_file",
    "load_checkpoint_as_logit_fn",
    "load_from_file",
    "make_enn_sampler_from_checkpoint",
    "make_epinet_forward_fn",
    "make_epinet_sampler_from_checkpoint",
]
