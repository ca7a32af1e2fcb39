"""The agents by name, their default settings, and the grids searched for them."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from enn.testbed import agents, baselines, last_layer_agents, posterior_agents
from enn.testbed.base import TestbedAgent, similar_ones


@dataclasses.dataclass(frozen=True)
class PaperAgent:
    """An agent of the benchmark.

    Attributes:
      default: its configuration in the benchmark.
      ctor: makes the agent from a configuration.
      sweep: returns the configurations searched on the two-dimensional problems.
    """

    default: Any
    ctor: Callable[[Any], TestbedAgent]
    sweep: Callable[[], Sequence[Any]]


def _grid(default: Any, **values: Iterable[Any]) -> list[Any]:
    return [
        dataclasses.replace(default, **dict(zip(values, point, strict=True)))
        for point in itertools.product(*values.values())
    ]


_DECADES = [10.0**power for power in range(-4, 3)]
_BOTH = [True, False]
_NOISE = ["none", "bernoulli", "exponential"]
_DECAYS = [0.1, 0.3, 1.0, 3.0, 10.0]
_SIZES = [(50, 50), (100, 100), (50, 50, 50)]
_MEMBERS = [1, 3, 10, 30, 100]


def _decays(default: Any) -> list[Any]:
    return _grid(default, l2_weight_decay=_DECADES, adaptive_weight_scale=_BOTH)


def _ensemble_sweep() -> list[Any]:
    default = agents.VanillaEnsembleConfig()
    thirty = dataclasses.replace(default, num_ensemble=30)
    return _grid(default, num_ensemble=_MEMBERS) + _decays(thirty)


def _ensemble_prior_sweep() -> list[Any]:
    default = agents.EnsembleConfig()
    return (
        _grid(default, num_ensemble=_MEMBERS)
        + _grid(default, distribution=_NOISE)
        + _grid(default, l2_weight_decay=_DECAYS)
    )


def _hypermodel_sweep() -> list[Any]:
    default = agents.HypermodelConfig()
    return (
        _grid(
            default,
            prior_scale=[0.0, 1.0],
            prior_hidden_sizes=[(10,), (10, 10)],
            l2_weight_decay=[1.0, 2.0],
            temp_scale_prior=["lin", "sqrt"],
        )
        + _grid(default, index_dim=[1, 3, 5, 7])
        + _grid(default, l2_weight_decay=_DECAYS)
        + _grid(default, distribution=_NOISE)
    )


def _dropout_sweep() -> list[Any]:
    default = agents.McDropoutConfig()
    rates = [tenth / 10 for tenth in range(10)]
    return (
        _grid(default, dropout_rate=rates, dropout_input=_BOTH)
        + _grid(default, adaptive_weight_scale=_BOTH, length_scale=[1.0, 3.0, 10.0])
        + _grid(default, hidden_sizes=_SIZES)
    )


def _bbb_sweep() -> list[Any]:
    default = agents.BBBConfig()
    mixture = dataclasses.replace(default, mixture_scale=0.5)
    return (
        _grid(
            default,
            learning_rate=[1e-3, 3e-3],
            sigma_1=[0.3, 0.5, 0.7, 1.0, 2.0],
            num_batches=[1000, 2000],
        )
        + _grid(mixture, sigma_1=[1.0, 2.0, 4.0], sigma_2=[0.3, 0.5, 0.7])
        + _grid(default, hidden_sizes=_SIZES)
    )


_DUMMY = baselines.DummyConfig()
_MLP = agents.MLPConfig()
_LINEAR = agents.MLPConfig(hidden_sizes=())
_SWAG = posterior_agents.SWAGConfig()
_MULTISWAG = posterior_agents.SWAGConfig(num_runs=10)

_AGENTS: dict[str, PaperAgent] = {
    "mlp": PaperAgent(_MLP, agents.make_mlp_agent, lambda: _decays(_MLP)),
    "ensemble": PaperAgent(
        agents.VanillaEnsembleConfig(),
        agents.make_vanilla_ensemble_agent,
        _ensemble_sweep,
    ),
    "ensemble+": PaperAgent(
        agents.EnsembleConfig(), agents.make_ensemble_prior_agent, _ensemble_prior_sweep
    ),
    "dropout": PaperAgent(
        agents.McDropoutConfig(), agents.make_mc_dropout_agent, _dropout_sweep
    ),
    "bbb": PaperAgent(agents.BBBConfig(), agents.make_bbb_agent, _bbb_sweep),
    "hypermodel": PaperAgent(
        agents.HypermodelConfig(), agents.make_hypermodel_agent, _hypermodel_sweep
    ),
    "epinet": PaperAgent(
        agents.EpinetConfig(),
        agents.make_epinet_agent,
        lambda: [agents.EpinetConfig()],
    ),
    "sgmcmc": PaperAgent(
        posterior_agents.SGMCMCConfig(),
        posterior_agents.make_sgmcmc_agent,
        lambda: _grid(
            posterior_agents.SGMCMCConfig(),
            momentum_decay=[0.0, 0.9],
            learning_rate=[1e-4, 5e-4, 1e-3, 5e-3],
            prior_variance=[0.05, 0.1, 0.2],
        ),
    ),
    "laplace": PaperAgent(
        last_layer_agents.LaplaceConfig(),
        last_layer_agents.make_laplace_agent,
        lambda: _grid(
            last_layer_agents.LaplaceConfig(),
            prior_precision=[None, "marginal_likelihood"],
            structure=["joint", "per_output", "diagonal", "kronecker"],
        ),
    ),
    "linearised_laplace": PaperAgent(
        last_layer_agents.LinearisedLaplaceConfig(),
        last_layer_agents.make_linearised_laplace_agent,
        lambda: _grid(
            last_layer_agents.LinearisedLaplaceConfig(),
            prior_precision=[None, "marginal_likelihood"],
            structure=["full", "diagonal"],
        ),
    ),
    "deep_kernel": PaperAgent(
        last_layer_agents.DeepKernelConfig(),
        last_layer_agents.make_deep_kernel_agent,
        lambda: [last_layer_agents.DeepKernelConfig()],
    ),
    "linear_hyper_head": PaperAgent(
        last_layer_agents.LinearHyperHeadConfig(),
        last_layer_agents.make_linear_hyper_head_agent,
        lambda: _grid(
            last_layer_agents.LinearHyperHeadConfig(),
            index_dim=[8, 30],
            prior_scale=[0.1, 0.3, 1.0, 3.0, 10.0],
        ),
    ),
    "vbll": PaperAgent(
        last_layer_agents.VBLLConfig(),
        last_layer_agents.make_vbll_agent,
        lambda: _grid(
            last_layer_agents.VBLLConfig(),
            structure=["per_output", "diagonal"],
            prior_variance=[None, 0.01, 0.1, 1.0],
        ),
    ),
    "sngp": PaperAgent(
        last_layer_agents.SNGPConfig(),
        last_layer_agents.make_sngp_agent,
        lambda: _grid(
            last_layer_agents.SNGPConfig(),
            likelihood=["gaussian", "categorical"],
            length_scale=[0.5, 1.0, 2.0],
            prior_precision=[0.1, 1.0],
        ),
    ),
    "swag": PaperAgent(
        _SWAG,
        posterior_agents.make_swag_agent,
        lambda: _grid(_SWAG, learning_rate=[0.02, 0.1], scale=[0.5, 1.0]),
    ),
    "multiswag": PaperAgent(
        _MULTISWAG,
        posterior_agents.make_swag_agent,
        lambda: _grid(_MULTISWAG, num_runs=[3, 10, 30]),
    ),
    "temperature": PaperAgent(
        posterior_agents.TemperatureConfig(),
        lambda config: posterior_agents.make_temperature_agent(config, make_agent),
        lambda: _grid(
            posterior_agents.TemperatureConfig(), agent=["mlp", "ensemble", "ensemble+"]
        ),
    ),
    "logistic_regression": PaperAgent(
        _LINEAR, agents.make_mlp_agent, lambda: _decays(_LINEAR)
    ),
    "knn": PaperAgent(
        baselines.KnnConfig(),
        baselines.make_knn_agent,
        lambda: _grid(
            baselines.KnnConfig(),
            num_neighbors=[1, 3, 5, 10, 20, 30],
            weighting=["uniform", "distance"],
        ),
    ),
    "random_forest": PaperAgent(
        baselines.RandomForestConfig(),
        baselines.make_random_forest_agent,
        lambda: _grid(
            baselines.RandomForestConfig(),
            n_estimators=[10, 100, 1000],
            criterion=["gini", "entropy"],
        ),
    ),
    "baseline:uniform_class_probs": PaperAgent(
        _DUMMY, baselines.make_uniform_class_probs_agent, lambda: [_DUMMY]
    ),
    "baseline:average_class_probs": PaperAgent(
        _DUMMY, baselines.make_average_class_probs_agent, lambda: [_DUMMY]
    ),
    "baseline:prior": PaperAgent(_DUMMY, baselines.make_prior_agent, lambda: [_DUMMY]),
}


def get_implemented_agents() -> list[str]:
    """Returns the names of the agents.

    >>> from enn import testbed
    >>> {"mlp", "ensemble", "epinet"} <= set(testbed.get_implemented_agents())
    True
    """
    return list(_AGENTS)


def get_paper_agent(name: str) -> PaperAgent:
    """Returns an agent's default configuration, constructor and grid.

    Raises:
      ValueError: for an unknown name; names those that are similar.

    >>> from enn import testbed
    >>> testbed.get_paper_agent("ensemble").default.num_ensemble
    100
    >>> len(testbed.get_paper_agent("dropout").sweep())
    29
    """
    if name not in _AGENTS:
        raise ValueError(f"Unknown agent {name!r}; {similar_ones(name, _AGENTS)}.")
    return _AGENTS[name]


def make_agent(name: str, **options: Any) -> TestbedAgent:
    """Returns an agent of the benchmark.

    Args:
      name: such as `"ensemble+"`; see `get_implemented_agents`.
      **options: fields of its configuration that differ from the benchmark's.

    Raises:
      ValueError: for an unknown name or option; names those that are similar.

    >>> from enn import testbed
    >>> agent = testbed.make_agent("ensemble", num_ensemble=10, num_batches=500)
    """
    agent = get_paper_agent(name)
    fields = [field.name for field in dataclasses.fields(agent.default)]
    for option in options:
        if option not in fields:
            near = similar_ones(option, fields)
            raise ValueError(f"Agent {name!r} has no option {option!r}; {near}.")
    return agent.ctor(dataclasses.replace(agent.default, **options))
