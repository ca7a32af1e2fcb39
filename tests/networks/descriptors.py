"""Every epistemic network, once: the contract tests run over this list.

A new network gets all of them by adding a line.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp

from enn import base, networks


@dataclasses.dataclass(frozen=True, eq=False)
class Descriptor:
    """How to make one network, and an example input.

    Attributes:
      name: name of the test case.
      make: makes the network.
      inputs: example input batch.
      num_outputs: size of the last axis of the predictions.
    """

    name: str
    make: Callable[[], base.EpistemicNetwork]
    inputs: Any
    num_outputs: int = 2


X = jax.random.normal(jax.random.PRNGKey(2), (4, 3))


def _mlp(sizes: list[int]) -> hk.Transformed:
    return hk.without_apply_rng(hk.transform(lambda x: hk.nets.MLP(sizes)(x)))


def _batch_norm_net(x: jax.Array) -> jax.Array:
    x = hk.Linear(5)(x)
    x = hk.BatchNorm(True, True, 0.9)(x, is_training=True)
    return hk.Linear(2)(jax.nn.relu(x))


def _stateful_ensemble() -> base.EpistemicNetwork:
    model = hk.without_apply_rng(hk.transform_with_state(_batch_norm_net))
    return networks.EnsembleWithState(model, 3)


def _ensemble_no_state() -> base.EpistemicNetwork:
    return networks.wrap_enn_no_state_as_enn(networks.Ensemble(_mlp([4, 2]), 3))


def _random_mlp_prior() -> base.EpistemicNetwork:
    prior_fn = networks.get_random_mlp_with_index(
        X, jnp.ones(3), jax.random.PRNGKey(1), [4, 2]
    )
    epinet = networks.epinet.make_mlp_epinet([4, 2], [5], 3)
    return networks.EnnWithAdditivePrior(epinet, prior_fn, 0.5)


def _linear_prior() -> base.EpistemicNetwork:
    prior_fns = networks.make_mlp_ensemble_prior_fns([4, 2], X, 3)
    return networks.EnnWithAdditivePrior(
        networks.epinet.make_mlp_epinet([4, 2], [5], 3),
        networks.combine_functions_linear_in_index(prior_fns),
    )


def _choice_prior() -> base.EpistemicNetwork:
    prior_fns = networks.make_mlp_ensemble_prior_fns([4, 2], X, 3)
    return networks.EnnWithAdditivePrior(
        _ensemble_no_state(), networks.combine_functions_choice_via_index(prior_fns)
    )


def _projected_mlp() -> base.EpistemicNetwork:
    return networks.epistemic_network_from_module(
        lambda: networks.ProjectedMLP([4], 2, 3), networks.GaussianIndexer(3)
    )


DESCRIPTORS = [
    Descriptor("plain_mlp", lambda: networks.wrap_transformed_as_enn(_mlp([4, 2])), X),
    Descriptor(
        "net_fn", lambda: networks.wrap_net_fn_as_enn(lambda x: hk.Linear(2)(x)), X
    ),
    Descriptor("ensemble_with_state", _stateful_ensemble, X),
    Descriptor("ensemble_no_state", _ensemble_no_state, X),
    Descriptor(
        "ensemble_matched_prior",
        lambda: networks.MLPEnsembleMatchedPrior([4, 2], X, 3),
        X,
    ),
    Descriptor(
        "ensemble_matched_prior_lazy",
        lambda: networks.MLPEnsembleMatchedPrior([4, 2], num_ensemble=3),
        X,
    ),
    Descriptor("choice_prior", _choice_prior, X),
    Descriptor("linear_prior", _linear_prior, X),
    Descriptor("random_mlp_prior", _random_mlp_prior, X),
    Descriptor("projected_mlp", _projected_mlp, X),
    Descriptor(
        "mlp_epinet", lambda: networks.epinet.make_mlp_epinet([4, 2], [5], 3), X
    ),
    Descriptor(
        "scaled",
        lambda: networks.scale_enn_output(
            networks.epinet.make_mlp_epinet([4, 2], [5], 3), 2.0
        ),
        X,
    ),
    Descriptor(
        "centered",
        lambda: networks.make_centered_enn(
            networks.MLPEnsembleMatchedPrior([4, 2], X, 3), X
        ),
        X,
    ),
]
