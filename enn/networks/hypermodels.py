"""Hypermodels: networks whose parameters are a function of the epistemic index.

Dwaracherla et al., 2020, Hypermodels for exploration,
https://arxiv.org/abs/2006.07464.
"""

import functools
from collections.abc import Sequence

import chex
import haiku as hk
import jax

from enn import _checks, base
from enn.networks.additive_priors import EnnWithAdditivePrior
from enn.networks.base import EnnArray
from enn.networks.hyper_layers import (
    DiagonalLinear,
    HyperLinear,
    PriorMLPIndependentLayers,
)
from enn.networks.hyper_network import hypermodel_module, tempered_mlp
from enn.networks.init_once import init_once
from enn.networks.layer_sizes import layer_sizes
from enn.networks.priors import convert_enn_to_prior_fn
from enn.networks.wrappers import epistemic_network_from_module

__all__ = [
    "DiagonalLinear",
    "HyperLinear",
    "MLPHypermodel",
    "MLPHypermodelPriorIndependentLayers",
    "MLPHypermodelWithHypermodelPrior",
    "PriorMLPIndependentLayers",
    "hypermodel_module",
]


class MLPHypermodel(EnnArray):
    """A base network whose parameters an MLP generates from the index.

    Parameters are generated once for an index, whatever the size of the batch.

    Args:
      transformed_base: the base network, a pair without apply-rng.
      dummy_input: array shaped like an input batch.
      indexer: draws an index `[index_dim]`.
      hidden_sizes: widths of the hidden layers; without any, the parameters are
        linear in the index.
      return_generated_params: see `hypermodel_module`.
      scale: see `hypermodel_module`.
      w_init: initialiser of the weights of the hidden layers.
      b_init: initialiser of the biases of the hidden layers.

    Raises:
      ValueError: if a size is no integer >= 1; by `init` and `apply` for an index
        that is no vector.
    """

    def __init__(
        self,
        transformed_base: hk.Transformed,
        dummy_input: chex.Array,
        indexer: base.EpistemicIndexer,
        hidden_sizes: Sequence[int] | None = None,
        return_generated_params: bool = False,
        scale: bool = True,
        w_init: hk.initializers.Initializer | None = None,
        b_init: hk.initializers.Initializer | None = None,
    ):
        sizes = layer_sizes("hidden_sizes", hidden_sizes) if hidden_sizes else []

        def hyper_torso(index: jax.Array) -> jax.Array:
            return hk.nets.MLP(sizes, w_init, b_init)(index)

        module = hypermodel_module(
            transformed_base,
            dummy_input,
            hyper_torso,
            return_generated_params=return_generated_params,
            scale=scale,
        )
        enn = epistemic_network_from_module(module, indexer)
        super().__init__(enn.apply, enn.init, enn.indexer)


class MLPHypermodelWithHypermodelPrior(EnnWithAdditivePrior):
    """An `MLPHypermodel` of an MLP, with a fixed one of the same kind as its prior.

    Inputs are flattened.

    Args:
      base_output_sizes: width of every layer of the base MLP.
      prior_scale: factor of the prior function.
      dummy_input: array shaped like an input batch.
      indexer: draws an index `[index_dim]`.
      prior_base_output_sizes: width of every layer of the prior's base MLP.
      hyper_hidden_sizes: widths of the hidden layers of the hypermodel.
      prior_hyper_hidden_sizes: widths of the hidden layers of the prior's hypermodel.
      w_init: initialiser of the weights of both hypermodels' hidden layers.
      b_init: initialiser of the biases of both hypermodels' hidden layers.
      return_generated_params: see `hypermodel_module`.
      seed: seed of the prior function.
      scale: see `hypermodel_module`; holds for both.

    Raises:
      ValueError: see `MLPHypermodel`.
    """

    def __init__(
        self,
        base_output_sizes: Sequence[int],
        prior_scale: float,
        dummy_input: chex.Array,
        indexer: base.EpistemicIndexer,
        prior_base_output_sizes: Sequence[int],
        hyper_hidden_sizes: Sequence[int] | None = None,
        prior_hyper_hidden_sizes: Sequence[int] | None = None,
        w_init: hk.initializers.Initializer | None = None,
        b_init: hk.initializers.Initializer | None = None,
        return_generated_params: bool = False,
        seed: int = 0,
        scale: bool = True,
    ):
        enn = MLPHypermodel(
            tempered_mlp(base_output_sizes),
            dummy_input,
            indexer,
            hyper_hidden_sizes,
            return_generated_params,
            scale,
            w_init,
            b_init,
        )
        prior_enn = MLPHypermodel(
            tempered_mlp(prior_base_output_sizes),
            dummy_input,
            indexer,
            prior_hyper_hidden_sizes,
            scale=scale,
            w_init=w_init,
            b_init=b_init,
        )
        prior_fn = convert_enn_to_prior_fn(
            prior_enn, dummy_input, jax.random.PRNGKey(seed)
        )
        super().__init__(enn, prior_fn, prior_scale)


class MLPHypermodelPriorIndependentLayers(EnnWithAdditivePrior):
    """An `MLPHypermodel` of an MLP, with a fixed `PriorMLPIndependentLayers` as prior.

    Inputs are flattened. Numbers follow the original `enn`: the prior's parameters and
    the index that tells its size are drawn with one key.

    Args:
      base_output_sizes: width of every layer of the base MLP.
      prior_scale: factor of the prior function.
      dummy_input: array shaped like an input batch.
      indexer: draws an index `[index_dim]`.
      prior_base_output_sizes: width of every layer of the prior.
      hyper_hidden_sizes: widths of the hidden layers of the hypermodel.
      w_init: initialiser of the weights of the hypermodel's hidden layers.
      b_init: initialiser of the biases of the hypermodel's hidden layers.
      return_generated_params: see `hypermodel_module`.
      prior_weight_scaling: see `HyperLinear`.
      prior_bias_scaling: see `HyperLinear`.
      prior_fixed_bias_val: see `HyperLinear`.
      seed: seed of the prior function.
      scale: see `hypermodel_module`.
      problem_temperature: divides network and prior, if given.

    Raises:
      ValueError: if a size is no integer >= 1, or `indexer` draws no vectors.
    """

    def __init__(
        self,
        base_output_sizes: Sequence[int],
        prior_scale: float,
        dummy_input: chex.Array,
        indexer: base.EpistemicIndexer,
        prior_base_output_sizes: Sequence[int],
        hyper_hidden_sizes: Sequence[int] | None = None,
        w_init: hk.initializers.Initializer | None = None,
        b_init: hk.initializers.Initializer | None = None,
        return_generated_params: bool = False,
        prior_weight_scaling: float = 1.0,
        prior_bias_scaling: float = 1.0,
        prior_fixed_bias_val: float = 0.0,
        seed: int = 0,
        scale: bool = True,
        problem_temperature: float | None = None,
    ):
        temperature = problem_temperature or 1.0
        enn = MLPHypermodel(
            tempered_mlp(base_output_sizes, temperature),
            dummy_input,
            indexer,
            hyper_hidden_sizes,
            return_generated_params,
            scale,
            w_init,
            b_init,
        )
        prior_key = next(hk.PRNGSequence(seed))
        index = indexer(prior_key)
        _checks.shape("the index that indexer draws", index, (None,), "[index_dim]")
        index_dim = len(index)

        def prior(inputs: chex.Array, index: base.Index) -> chex.Array:
            net = PriorMLPIndependentLayers(
                prior_base_output_sizes,
                index_dim,
                prior_weight_scaling,
                prior_bias_scaling,
                prior_fixed_bias_val,
            )
            return net(inputs, index) / temperature

        transformed_prior = hk.without_apply_rng(hk.transform(prior))
        prior_params = init_once(transformed_prior.init, prior_key, dummy_input, index)
        prior_fn = functools.partial(transformed_prior.apply, prior_params)
        super().__init__(enn, prior_fn, prior_scale)
