"""Many problems at once: an agent that can trains on those of one shape together."""

from collections.abc import Sequence

from enn.testbed.base import (
    Data,
    ENNQuality,
    EpistemicSampler,
    PriorKnowledge,
    TestbedAgent,
    TestbedProblem,
)
from enn.testbed.vanilla import without_numbers


def run_many(
    agent: TestbedAgent, problems: Sequence[TestbedProblem]
) -> list[ENNQuality]:
    """Trains an agent on every problem, and returns how good its predictions are.

    The numbers are those of `run`, to rounding. Problems of one shape, which differ in
    data, temperature and noise alone, train in one compiled program where the agent has
    a method `train_many(datasets, priors)`, as those of networks have.

    >>> from enn import testbed
    >>> problems = [testbed.problem_from_id(f"classification_2d/{i}") for i in (75, 76)]
    >>> agent = testbed.make_agent("mlp", num_batches=100)
    >>> len(testbed.run_many(agent, problems))
    2
    """
    samplers = train_many(
        agent,
        [problem.train_data for problem in problems],
        [problem.prior_knowledge for problem in problems],
    )
    return [
        problem.evaluate_quality(sampler)
        for problem, sampler in zip(problems, samplers, strict=True)
    ]


def train_many(
    agent: TestbedAgent, datasets: Sequence[Data], priors: Sequence[PriorKnowledge]
) -> list[EpistemicSampler]:
    """Returns the samplers of an agent trained on each data set; see `run_many`."""
    together = getattr(agent, "train_many", None)
    if together is None:
        return [
            agent(data, prior) for data, prior in zip(datasets, priors, strict=True)
        ]
    samplers: dict[int, EpistemicSampler] = {}
    for group in groups_of_one_shape(priors):
        trained = together([datasets[i] for i in group], [priors[i] for i in group])
        samplers |= zip(group, trained, strict=True)
    return [samplers[i] for i in range(len(datasets))]


def groups_of_one_shape(priors: Sequence[PriorKnowledge]) -> list[list[int]]:
    """Returns the positions of problems that can train together, group by group."""
    return equal_ones(list(map(without_numbers, priors)))


def equal_ones(priors: Sequence[PriorKnowledge]) -> list[list[int]]:
    """Returns the positions of equal ones, group by group."""
    groups: dict[PriorKnowledge, list[int]] = {}
    for i, prior in enumerate(priors):
        groups.setdefault(prior, []).append(i)
    return list(groups.values())
