"""Classification heads on the pooled output of BERT."""

import dataclasses
from collections.abc import Callable, Sequence

import chex
import haiku as hk
import jax
import jax.numpy as jnp

from enn import _checks
from enn.networks.base import EnnArray, OutputWithPrior
from enn.networks.dropout import MLPDropoutENN
from enn.networks.einsum_mlp import make_einsum_ensemble_mlp_enn
from enn.networks.epinet.mlp import make_mlp_epinet
from enn.networks.utils import wrap_stochastic_fn_as_enn


@dataclasses.dataclass
class AgentConfig:
    """Settings of a head; each kind of head reads those it has.

    >>> from enn.networks import bert
    >>> config = bert.AgentConfig(hiddens=[50], index_dim=10)
    >>> bert.make_head_enn("epinet", num_classes=2, agent_config=config).indexer
    GaussianIndexer(index_dim=10)

    Attributes:
      hiddens: widths of the hidden layers, of the base network and of the epinet.
      num_ensemble: members of `"ensemble"`.
      dropout_rate: rate of `"dropout"`.
      index_dim: size of the index of `"epinet"`.
      prior_scale: factor of the prior of `"epinet"`.
    """

    hiddens: Sequence[int] = (50, 50)
    num_ensemble: int = 10
    dropout_rate: float = 0.1
    index_dim: int = 30
    prior_scale: float = 1


def make_head_enn(
    agent: str, num_classes: int, agent_config: AgentConfig | None = None
) -> EnnArray:
    """Returns an epistemic classification head on features `[batch, hidden_size]`.

    Epinets on BERT: Osband et al., 2022, https://arxiv.org/abs/2211.01568.

    >>> import jax, numpy as np
    >>> from enn.networks import bert
    >>> config = bert.AgentConfig(hiddens=[4], num_ensemble=3)
    >>> head = bert.make_head_enn("ensemble", num_classes=2, agent_config=config)
    >>> h = np.ones([5, 8])  # Pooled outputs of BERT
    >>> params, state = head.init(jax.random.key(0), h, 0)
    >>> len({float(head.apply(params, state, h, k)[0][0, 0]) for k in range(3)})
    3

    Args:
      agent: `"epinet"`, an MLP with an epinet on its inputs; `"ensemble"`, of MLPs;
        or `"dropout"`, an MLP with dropout after its hidden layers.
      num_classes: number of classes.
      agent_config: settings; `AgentConfig()` if left out.

    Returns:
      Network with output `[batch, num_classes]`.

    Raises:
      ValueError: for another `agent`, and for settings out of range.
    """
    config = agent_config or AgentConfig()
    sizes = [*config.hiddens, _checks.positive_int("num_classes", num_classes)]
    makers: dict[str, Callable[[], EnnArray]] = {
        "epinet": lambda: make_mlp_epinet(
            sizes,
            config.hiddens,
            config.index_dim,
            expose_layers=[False] * len(sizes),
            prior_scale=config.prior_scale,
            stop_gradient=True,
        ),
        "ensemble": lambda: make_einsum_ensemble_mlp_enn(sizes, config.num_ensemble),
        "dropout": lambda: MLPDropoutENN(
            sizes, config.dropout_rate, dropout_input=False
        ),
    }
    _checks.one_of("agent", agent, makers)
    return makers[agent]()


def make_baseline_head_enn(
    num_classes: int, is_training: bool, shared_dropout: bool = False
) -> EnnArray:
    """Returns a linear classification head, whose index is the key of its dropout.

    logits = W φ + b (Devlin et al., 2019, https://arxiv.org/abs/1810.04805, section
    4.1).

    Initial parameters differ between `is_training` True and False, since dropout
    takes the first key. Numbers follow the original `enn`.

    >>> import jax, numpy as np
    >>> from enn.networks import bert
    >>> head = bert.make_baseline_head_enn(num_classes=2, is_training=False)
    >>> x, key, other = np.ones([5, 8]), jax.random.key(0), jax.random.key(1)
    >>> params, state = head.init(key, x, key)
    >>> out, again = (head.apply(params, state, x, index)[0] for index in (key, other))
    >>> bool((out.train == again.train).all())  # No dropout in evaluation
    True

    Args:
      num_classes: number of classes.
      is_training: whether dropout is on; without it the index changes nothing.
      shared_dropout: whether all rows of a batch share their mask, see `make_bert_enn`.

    Returns:
      Network on features `[batch, hidden_size]` with `train` of
      `[batch, num_classes]` and no prior.
    """

    def forward(inputs: chex.Array) -> OutputWithPrior:
        layer = CommonOutputLayer(num_classes, use_extra_projection=False)
        logits = layer(inputs, is_training)
        return OutputWithPrior(logits, jnp.zeros_like(logits))

    return wrap_stochastic_fn_as_enn(forward, shared_dropout)


class CommonOutputLayer(hk.Module):
    """The usual classifier on BERT: projection, dropout, linear layer.

    Args:
      num_classes: number of classes.
      dropout_rate: rate of dropout on the features.
      use_extra_projection: whether a tanh layer as wide as the inputs comes first.
      name: name of the module.

    Raises:
      ValueError: if `num_classes` is not an integer >= 1 or `dropout_rate` is outside
        [0, 1).
    """

    def __init__(
        self,
        num_classes: int,
        dropout_rate: float = 0.1,
        use_extra_projection: bool = True,
        name: str = "output_layer",
    ):
        super().__init__(name=name)
        if not 0 <= dropout_rate < 1:
            raise ValueError(f"dropout_rate must be in [0, 1), got {dropout_rate}.")
        self.num_classes = _checks.positive_int("num_classes", num_classes)
        self.dropout_rate = dropout_rate
        self.use_extra_projection = use_extra_projection

    def __call__(self, inputs: chex.Array, is_training: bool = True) -> jax.Array:
        """Returns logits `[batch, num_classes]` of features `[batch, hidden_size]`."""
        w_init = hk.initializers.RandomNormal(0.02)
        features = jnp.asarray(inputs)
        if self.use_extra_projection:
            projection = hk.Linear(features.shape[-1], w_init=w_init)
            features = jnp.tanh(projection(features))
        if is_training:
            features = hk.dropout(hk.next_rng_key(), self.dropout_rate, features)
        return hk.Linear(self.num_classes, w_init=w_init)(features)
