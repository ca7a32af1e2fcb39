"""The networks that the demo compares."""

import dataclasses
from collections.abc import Callable, Sequence

import haiku as hk
import jax
import optax

from enn import base, losses, networks, supervised
from enn.datasets.in_memory import BatchIterator
from enn.loggers import MemoryLogger
from enn.networks.base import EnnArray


@dataclasses.dataclass(frozen=True)
class Agent:
    """A network and how many indices a training step averages over.

    Attributes:
      make: makes the network from the number of outputs.
      num_index_samples: index samples a training step.
    """

    make: Callable[[int], base.EpistemicNetwork]
    num_index_samples: int


def make_mlp(hiddens: Sequence[int], num_outputs: int) -> EnnArray:
    """Returns an MLP, which has no use for its index."""

    def forward(inputs: jax.Array) -> jax.Array:
        return hk.nets.MLP([*hiddens, num_outputs])(hk.Flatten()(inputs))

    return networks.wrap_net_fn_as_enn(forward)


def make_agents(hiddens: Sequence[int], prior_scale: float) -> dict[str, Agent]:
    """Returns the agents by name, all with hidden layers of the same sizes."""
    return {
        "mlp": Agent(lambda num_outputs: make_mlp(hiddens, num_outputs), 1),
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
    """Returns the trained experiment of an agent."""
    print(f"training {name}")
    loss = losses.average_single_index_loss(single_loss, agent.num_index_samples)
    enn = agent.make(num_outputs)
    return run_experiment(enn, loss, optax.adam(1e-3), dataset, seed, steps)


def run_experiment(
    enn: base.EpistemicNetwork,
    loss: losses.LossFnArray,
    optimizer: optax.GradientTransformation,
    dataset: BatchIterator,
    seed: int,
    steps: int,
) -> supervised.Experiment:
    """Returns the trained experiment, having shown a progress bar."""
    experiment = supervised.Experiment(
        enn,
        loss,
        optimizer,
        dataset,
        seed=seed,
        logger=MemoryLogger(),
        train_log_freq=None,
    )
    experiment.train(steps, progress=True)
    return experiment
