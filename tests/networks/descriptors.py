"""Every epistemic network, once: the contract tests run over this list.

A new network gets all of them by adding a line.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import haiku as hk
import jax
import numpy as np
from flax import linen, nnx

from enn import base, networks, posteriors
from enn.datasets import ArrayBatch
from enn.networks.bert import (
    AgentConfig,
    BertConfig,
    BertInput,
    make_bert_enn,
    make_head_enn,
)
from enn.networks.checkpoints import EnnCheckpoint


@dataclasses.dataclass(frozen=True, eq=False)
class Descriptor:
    """How to make one network, and an example input.

    Attributes:
      name: name of the test case.
      make: makes the network.
      inputs: example input batch.
      num_outputs: size of the last axis of the predictions.
      batch_statistics: whether a row's output depends on the rest of the batch.
      draws_per_row: whether each row has draws of its own, as in the original `enn`.
    """

    name: str
    make: Callable[[], base.EpistemicNetwork]
    inputs: Any
    num_outputs: int = 2
    batch_statistics: bool = False
    draws_per_row: bool = False


# Networks share their sizes where they can: eager operations are compiled once a shape.
_DRAW = np.random.default_rng(2)
X = _DRAW.normal(size=(4, 3)).astype(np.float32)
IMAGES = _DRAW.normal(size=(3, 4, 4, 3)).astype(np.float32)
HEAD = AgentConfig(hiddens=(4,), index_dim=3)
ATOMS = np.linspace(-2, 2, 5)
TOKENS = BertInput(
    token_ids=np.array([[1, 2, 3, 4, 0], [5, 6, 7, 0, 0]]),
    segment_ids=np.zeros((2, 5), int),
    input_mask=np.array([[1, 1, 1, 1, 0], [1, 1, 1, 0, 0]]),
)


def _mlp(sizes: list[int]) -> hk.Transformed:
    return hk.without_apply_rng(hk.transform(lambda x: hk.nets.MLP(sizes)(x)))


def _batch_norm_net(x: jax.Array) -> jax.Array:
    x = hk.Linear(4)(x)
    x = hk.BatchNorm(True, True, 0.9)(x, is_training=True)
    return hk.Linear(2)(jax.nn.relu(x))


def _dropout_net(x: jax.Array) -> jax.Array:
    return hk.Linear(2)(hk.dropout(hk.next_rng_key(), 0.5, x))


def _flax_dropout() -> base.EpistemicNetwork:
    dropout = linen.Dropout(0.5, deterministic=False)
    return networks.from_flax(linen.Sequential([dropout, linen.Dense(2)]))


def _nnx_dropout() -> base.EpistemicNetwork:
    return networks.from_nnx(
        lambda rngs: nnx.Sequential(
            nnx.Dropout(0.5, rngs=rngs), nnx.Linear(3, 2, rngs=rngs)
        )
    )


def _equinox_dropout() -> base.EpistemicNetwork:
    return networks.from_equinox(
        lambda key: eqx.nn.Sequential(
            [eqx.nn.Dropout(0.5), eqx.nn.Linear(3, 2, key=key)]
        )
    )


def _stateful_ensemble() -> base.EpistemicNetwork:
    model = hk.without_apply_rng(hk.transform_with_state(_batch_norm_net))
    return networks.EnsembleWithState(model, 3)


def _ensemble_no_state() -> base.EpistemicNetwork:
    return networks.wrap_enn_no_state_as_enn(networks.Ensemble(_mlp([4, 2]), 3))


def _random_mlp_prior() -> base.EpistemicNetwork:
    prior_fn = networks.get_random_mlp_with_index(
        X, np.ones(3), jax.random.PRNGKey(1), [4, 2]
    )
    epinet = networks.epinet.make_mlp_epinet([4, 2], [4], 3)
    return networks.EnnWithAdditivePrior(epinet, prior_fn, 0.5)


def _linear_prior() -> base.EpistemicNetwork:
    prior_fns = networks.make_mlp_ensemble_prior_fns([4, 2], X, 3)
    return networks.EnnWithAdditivePrior(
        networks.epinet.make_mlp_epinet([4, 2], [4], 3),
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


def _bert(
    is_training: bool, shared: bool = False, pooling: str = "first"
) -> base.EpistemicNetwork:
    config = BertConfig(
        vocab_size=8,
        hidden_size=6,
        num_hidden_layers=1,
        num_attention_heads=3,
        intermediate_size=6,
        max_position_embeddings=8,
        type_vocab_size=2,
        pooling=pooling,
    )
    return make_bert_enn(config, is_training, shared)


RESNET = networks.ResNetConfig((16,), (1,), (1,), "V1")


def _resnet_epinet() -> base.EpistemicNetwork:
    resnet = networks.EnsembleResNetENN(2, is_training=False, config=RESNET)
    checkpoint = EnnCheckpoint(
        "base",
        lambda: jax.jit(resnet.init)(jax.random.PRNGKey(5), IMAGES, 0),
        lambda: resnet,
    )
    return networks.epinet.ResnetFinalEpinet(
        networks.epinet.ResnetFinalEpinetConfig(checkpoint, 3, 2, [4])
    )


def _flax_epinet() -> base.EpistemicNetwork:
    net = linen.Sequential([linen.Dense(4), linen.Dense(2)])
    return networks.epinet.add_epinet(
        net,
        jax.jit(net.init)(jax.random.key(5), X),
        features="layers_1",
        num_outputs=2,
        index_dim=3,
        epinet_hiddens=[4],
        freeze_base=False,
    )


def _flax_ensemble() -> base.EpistemicNetwork:
    norm = linen.BatchNorm(use_running_average=False)
    net = linen.Sequential([linen.Dense(4), norm, linen.Dense(2)])
    return networks.make_ensemble(networks.from_flax(net), 3)


def _nnx_ensemble() -> base.EpistemicNetwork:
    return networks.make_ensemble(_nnx_dropout(), 3)


def _epinet_ensemble() -> base.EpistemicNetwork:
    return networks.make_ensemble(networks.epinet.make_mlp_epinet([4, 2], [4], 3), 2)


def _bert_ensemble() -> base.EpistemicNetwork:
    return networks.make_ensemble(_bert(False), 2)


def _samples() -> base.EpistemicNetwork:
    model = _mlp([4, 2])
    keys = jax.random.split(jax.random.PRNGKey(4), 3)
    return networks.from_samples(model.apply, jax.vmap(model.init, (0, None))(keys, X))


def _network_samples() -> base.EpistemicNetwork:
    net = networks.wrap_net_fn_as_enn(_batch_norm_net)
    key, *keys = jax.random.split(jax.random.PRNGKey(4), 4)
    init = jax.jit(jax.vmap(net.init, (0, None, None)))
    samples, states = init(jax.numpy.stack(keys), X, key)
    return networks.from_network_samples(net, samples, states)


def _gaussian_last_layer() -> base.EpistemicNetwork:
    net = networks.wrap_net_fn_as_enn(lambda x: hk.nets.MLP([4, 2])(x))
    exposed = networks.expose_features(net, "mlp/~/linear_1")
    checkpoint = EnnCheckpoint(
        "base",
        lambda: jax.jit(net.init)(jax.random.PRNGKey(5), X, jax.random.PRNGKey(6)),
        lambda: exposed,
    )
    return networks.epinet.combine_base_epinet_as_enn(
        checkpoint,
        networks.GaussianLastLayer(4, 2, "joint", rank=3),
        lambda out: out.extra["features"],
        freeze_base=False,
    )


def _fitted(fit: Callable[..., posteriors.Posterior], **kw: Any) -> Any:
    net = networks.wrap_net_fn_as_enn(lambda x: hk.nets.MLP([4, 2])(x))
    params, state = jax.jit(net.init)(jax.random.PRNGKey(5), X, jax.random.PRNGKey(6))
    data = ArrayBatch(x=X, y=np.array([[0], [1], [1], [0]]))
    return fit(net, params, state, data, "categorical", **kw).enn


DESCRIPTORS = [
    Descriptor("plain_mlp", lambda: networks.wrap_transformed_as_enn(_mlp([4, 2])), X),
    Descriptor(
        "net_fn", lambda: networks.wrap_net_fn_as_enn(lambda x: hk.Linear(2)(x)), X
    ),
    Descriptor("ensemble_with_state", _stateful_ensemble, X, batch_statistics=True),
    Descriptor(
        "haiku_dropout", lambda: networks.wrap_stochastic_fn_as_enn(_dropout_net), X
    ),
    Descriptor("flax_dropout", _flax_dropout, X),
    Descriptor("nnx_dropout", _nnx_dropout, X),
    Descriptor("equinox_dropout", _equinox_dropout, X),
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
        "mlp_epinet", lambda: networks.epinet.make_mlp_epinet([4, 2], [4], 3), X
    ),
    Descriptor(
        "scaled",
        lambda: networks.scale_enn_output(
            networks.epinet.make_mlp_epinet([4, 2], [4], 3), 2.0
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
    Descriptor(
        "einsum_ensemble", lambda: networks.make_einsum_ensemble_mlp_enn([4, 2], 3), X
    ),
    Descriptor(
        "einsum_ensemble_prior",
        lambda: networks.make_ensemble_mlp_with_prior_enn([4, 2], X, 3),
        X,
    ),
    Descriptor("dropout", lambda: networks.MLPDropoutENN([4, 4, 2], 0.1), X),
    Descriptor("gaussian_noise", lambda: networks.GaussianNoiseMLP([4, 2], 0.1), X),
    Descriptor("bbb", lambda: networks.make_bbb_enn([4, 2], X), X),
    Descriptor("index_mlp", lambda: networks.IndexMLPEnn([4, 4, 2], 3, 6), X),
    Descriptor(
        "index_mlp_gp_prior",
        lambda: networks.IndexMLPWithGpPrior([4, 2], 3, 2, 5, variance_dim=6),
        X,
    ),
    Descriptor(
        "categorical_gp_prior",
        lambda: networks.CatMLPEnsembleGpPrior([4, 2], ATOMS, 3, 3, 6),
        X,
    ),
    Descriptor(
        "categorical_mlp_prior",
        lambda: networks.CatMLPEnsembleMlpPrior([4, 2], ATOMS, X, 3),
        X,
    ),
    Descriptor(
        "hypermodel",
        lambda: networks.MLPHypermodel(
            _mlp([4, 2]), X, networks.ScaledGaussianIndexer(3), hidden_sizes=[4]
        ),
        X,
    ),
    Descriptor(
        "hypermodel_hypermodel_prior",
        lambda: networks.MLPHypermodelWithHypermodelPrior(
            [4, 2], 0.7, X, networks.ScaledGaussianIndexer(3), [4, 2], [4], [4]
        ),
        X,
    ),
    Descriptor(
        "hypermodel_independent_prior",
        lambda: networks.MLPHypermodelPriorIndependentLayers(
            [4, 2], 0.7, X, networks.ScaledGaussianIndexer(3), [4, 2], [4]
        ),
        X,
    ),
    Descriptor("lenet", lambda: networks.EnsembleLeNet5ENN(2, 2, (16,)), IMAGES),
    Descriptor(
        "vgg",
        lambda: networks.EnsembleVGGENN(
            2, 2, vgg_output_channels=(16,), vgg_strides=(1,)
        ),
        IMAGES,
        batch_statistics=True,
    ),
    Descriptor(
        "resnet", lambda: networks.EnsembleResNetENN(2, 2, config=RESNET), IMAGES
    ),
    Descriptor("resnet_epinet", _resnet_epinet, IMAGES),
    Descriptor("bert_eval", lambda: _bert(False), TOKENS, 6),
    Descriptor("bert_mean", lambda: _bert(False, pooling="mean"), TOKENS, 6),
    Descriptor("bert_training", lambda: _bert(True), TOKENS, 6, draws_per_row=True),
    Descriptor("bert_shared_dropout", lambda: _bert(True, shared=True), TOKENS, 6),
    Descriptor("bert_epinet_head", lambda: make_head_enn("epinet", 2, HEAD), X),
    Descriptor(
        "combined",
        lambda: networks.combine_naive_enn(
            make_head_enn("epinet", 2, HEAD),
            networks.wrap_net_fn_as_enn(lambda x: hk.Linear(4, name="torso")(x)),
        ),
        X,
    ),
    Descriptor("samples", _samples, X),
    Descriptor("network_samples", _network_samples, X, batch_statistics=True),
    Descriptor("flax_epinet", _flax_epinet, X),
    Descriptor("flax_ensemble", _flax_ensemble, X, batch_statistics=True),
    Descriptor("nnx_ensemble", _nnx_ensemble, X),
    Descriptor("epinet_ensemble", _epinet_ensemble, X),
    Descriptor("bert_ensemble", _bert_ensemble, TOKENS, 6),
    Descriptor("gaussian_last_layer", _gaussian_last_layer, X),
    Descriptor("sngp_mlp", lambda: networks.make_sngp_mlp_enn([4, 2], 8), X),
    Descriptor("vbll_mlp", lambda: networks.make_vbll_mlp_enn([4, 2]), X),
    Descriptor(
        "linear_hyper_mlp", lambda: networks.make_linear_hyper_mlp_enn([4, 2], 3), X
    ),
    Descriptor(
        "laplace",
        lambda: _fitted(
            posteriors.fit_laplace, structure="kronecker", last_layer="mlp/~/linear_1"
        ),
        X,
    ),
    Descriptor(
        "linearised_laplace",
        lambda: _fitted(
            posteriors.fit_linearised_laplace, structure="low_rank", rank=3
        ),
        X,
    ),
]
