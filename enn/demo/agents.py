"""The networks that the demo compares."""

import dataclasses
from collections.abc import Callable, Sequence

import haiku as hk
import jax
import optax

from enn import base, losses, networks, supervised
from enn.datasets.in_memory import BatchIterator
from enn.loggers import MemoryLogger


@dataclasses.dataclass(frozen=True)
class Agent:
    """A network and how many indices a training step averages over.

    Attributes:
      make: makes the network from the number of outputs.
      num_index_samples: index samples a training step.
    """

    make: Callable[[int], base.EpistemicNetwork]
    num_index_samples: int


def _mlp(hiddens: Sequence[int], num_outputs: int) -> base.EpistemicNetwork:
    def forward(inputs: jax.Array) -> jax.Array:
        return hk.nets.MLP([*hiddens, num_outputs])(hk.Flatten()(inputs))

    return networks.wrap_net_fn_as_enn(forward)


def make_agents(hiddens: Sequence[int], prior_scale: float) -> dict[str, Agent]:
    """Returns the agents by name, all with hidden layers of the same sizes."""
    return {
        "mlp": Agent(lambda num_outputs: _mlp(hiddens, num_outputs), 1),
        "ensemble": Agent(
            lambda num_outputs: networks.MLPEnsembleMatchedPrior(
                output_sizes=[*hiddens, num_outputs],
                num_ensemble=10,
                prior_scale=prior_scale,
            ),
            10,
        ),
        "epinet": Agent(
            lambda num_outputs: networks.epinet.make_mlp_epinet(
                output_sizes=[*hiddens, num_outputs],
                epinet_hiddens=[15, 15],
                index_dim=10,
                prior_scale=prior_scale,
            ),
            10,
        ),
    }


def train(
    name: str,
    agent: Agent,
    num_outputs: int,
    single_loss: losses.SingleLossFnArray,
    dataset: BatchIterator,
    seed: int,
    steps: int,
) -> supervised.Experiment:
    """Returns the trained experiment, having shown a progress bar."""
    experiment = supervised.Experiment(
        agent.make(num_outputs),
        losses.average_single_index_loss(single_loss, agent.num_index_samples),
        optax.adam(1e-3),
        dataset,
        seed=seed,
        logger=MemoryLogger(),
        train_log_freq=None,
    )
    print(f"training {name}")
    experiment.train(steps, progress=True)
    return experiment
