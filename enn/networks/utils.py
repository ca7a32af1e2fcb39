"""Adapters of networks and outputs, under the names that research code imports."""

from enn.networks.centering import make_centered_enn, make_centered_enn_no_state
from enn.networks.no_state import (
    wrap_apply_no_state_as_apply,
    wrap_enn_as_enn_no_state,
    wrap_enn_no_state_as_enn,
    wrap_init_no_state_as_init,
)
from enn.networks.outputs import (
    parse_net_output,
    parse_to_output_with_prior,
    scale_enn_output,
)
from enn.networks.wrappers import (
    epistemic_network_from_module,
    wrap_net_fn_as_enn,
    wrap_transformed_as_enn,
    wrap_transformed_as_enn_no_state,
)

__all__ = [
    "epistemic_network_from_module",
    "make_centered_enn",
    "make_centered_enn_no_state",
    "parse_net_output",
    "parse_to_output_with_prior",
    "scale_enn_output",
    "wrap_apply_no_state_as_apply",
    "wrap_enn_as_enn_no_state",
    "wrap_enn_no_state_as_enn",
    "wrap_init_no_state_as_init",
    "wrap_net_fn_as_enn",
    "wrap_transformed_as_enn",
    "wrap_transformed_as_enn_no_state",
]
