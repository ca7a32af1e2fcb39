"""Telling the parameters that train from fixed priors in the same tree.

Several networks keep their prior among their parameters: no gradient reaches it, but
weight decay and other penalties on all parameters would move it. Its modules are
known by name.
"""

import re
from typing import Any

import haiku as hk

_PRIOR = re.compile(r"((.*_)?prior_epinet|prior|prior_conv)(_\d+)?")


def is_trainable(module_name: str, name: str, value: Any) -> bool:
    """Returns whether a parameter trains, judged by the path of its module.

    It does not if a component of the path (between slashes) is `prior_epinet` or ends
    in `_prior_epinet` (epinets), or is `prior` or `prior_conv` (image priors), each
    with or without the number that Haiku appends to repeated names. A prior of
    another name, as `NetworkWithAdditivePrior` may have, counts as trainable: name
    its module `prior`. Usable as the predicate of
    `enn.losses.add_l2_weight_decay`.

    Args:
      module_name: path of the module, such as `train_epinet/~/mlp/~/linear_0`.
      name: name of the parameter, not looked at.
      value: value of the parameter, not looked at.
    """
    return not any(_PRIOR.fullmatch(part) for part in module_name.split("/"))


def trainable_mask(params: hk.Params) -> dict[str, dict[str, bool]]:
    """Returns the tree of `params` with `is_trainable` in place of each parameter.

    For `optax.masked`, and for the `mask` of `optax.adamw` and
    `optax.add_decayed_weights`.
    """
    return {
        module_name: {
            name: is_trainable(module_name, name, value)
            for name, value in module.items()
        }
        for module_name, module in params.items()
    }
