"""Many problems at once have the numbers of each one alone."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from enn import networks, testbed
from enn.datasets import ArrayBatch
from enn.loggers import MemoryLogger
from enn.testbed import many, vanilla

# Two temperatures, and 3 rows, which a batch of 100 repeats unequally.
IDS = ("classification_2d/30", "classification_2d/55")
SMALL = {
    "mlp": {},
    "ensemble": {"num_ensemble": 3},
    "ensemble+": {"num_ensemble": 3, "distribution": "bernoulli"},
    "dropout": {"hidden_sizes": (5, 5)},
    "bbb": {"hidden_sizes": (5,)},
    "hypermodel": {"hidden_sizes": (5,)},
    "epinet": {"hidden_sizes": (5,), "epi_hiddens": (3,)},
}


@pytest.fixture(scope="module")
def problems():
    return [testbed.problem_from_id(problem_id) for problem_id in IDS]


def _parts(problems):
    data = [problem.train_data for problem in problems]
    return data, [problem.prior_knowledge for problem in problems]


def _logits(sampler):
    x = jnp.array([[0.5, -1.0], [2.0, 0.3]])
    return sampler.sample_many(x, jax.random.split(jax.random.PRNGKey(0), 4))


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_each_is_as_alone(name, problems):
    agent = testbed.make_agent(name, num_batches=30, **SMALL[name])
    data, priors = _parts(problems)
    together = agent.train_many(data, priors)
    assert agent.experiment is None  # They did train together.
    for sampler, *problem in zip(together, data, priors, strict=True):
        np.testing.assert_allclose(
            _logits(sampler), _logits(agent(*problem)), rtol=2e-3, atol=5e-4
        )
    assert not np.allclose(_logits(together[0]), _logits(together[1]), atol=1e-2)


@pytest.mark.slow
def test_distinct_rows_have_the_loss_of_the_batch(problems):
    data, prior = problems[0].train_data, problems[0].prior_knowledge
    enn = networks.make_einsum_ensemble_mlp_enn([4, 2], 2)
    params, state = enn.init(jax.random.PRNGKey(0), data.x, 0)
    loss = testbed.default_enn_loss(5, weight_reg_scale=0.5)(prior, enn)
    rows = np.random.default_rng(0).integers(3, size=100)
    batch = ArrayBatch(x=data.x[rows], y=data.y[rows], data_index=rows[:, None])
    on_rows = vanilla._on_distinct_rows(loss, {"x": data.x, "y": data.y})
    args = params, state, batch, jax.random.PRNGKey(1)
    got, expected = on_rows(enn, *args)[0], loss(enn, *args)[0]
    np.testing.assert_allclose(got, expected, rtol=1e-6)


@pytest.mark.slow
def test_qualities_come_in_the_order_of_problems(problems):
    agent = testbed.make_agent("mlp", num_batches=5, hidden_sizes=(4,))
    other = testbed.problem_from_id("classification_2d/0")  # Another shape.
    order = [problems[0], other, problems[1]]
    got = [quality.kl_estimate for quality in testbed.run_many(agent, order)]
    expected = [testbed.run(agent, problem).kl_estimate for problem in order]
    np.testing.assert_allclose(got, expected, rtol=1e-4)


def test_an_agent_without_the_method_trains_one_after_the_other(problems):
    def agent(data, prior):
        mean = data.y.mean() / prior.temperature
        return lambda x, key: jnp.tile(jnp.array([[0.0, mean]]), (len(x), 1))

    data, priors = _parts(problems)
    samplers = many.train_many(agent, data, priors)
    means = [sampler(jnp.zeros([1, 2]), None)[0, 1] for sampler in samplers]
    expected = [d.y.mean() / p.temperature for d, p in zip(data, priors, strict=True)]
    np.testing.assert_allclose(means, expected, rtol=1e-6)


def _own_config(**changes):
    def enn_ctor(prior):
        return networks.MLPEnsembleMatchedPrior(
            [4, prior.num_classes], num_ensemble=2, prior_scale=1 / prior.temperature
        )

    config = testbed.VanillaEnnConfig(
        enn_ctor, testbed.default_enn_loss(2), optax.adam(1e-2), num_batches=20
    )
    return dataclasses.replace(config, **changes)


@pytest.mark.slow
def test_own_network_that_is_centred_and_logged(problems):
    logger = MemoryLogger()
    agent = testbed.VanillaEnnAgent(
        _own_config(center_train_data=True, logger=logger, train_log_freq=10)
    )
    data, priors = _parts(problems)
    samplers = agent.train_many(data, priors)
    assert [(row["step"], row["run"]) for row in logger.rows] == [
        (step, run) for step in (10, 20) for run in (0, 1)
    ]
    for sampler, *problem in zip(samplers, data, priors, strict=True):
        alone = agent(*problem)
        np.testing.assert_allclose(_logits(sampler), _logits(alone), rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("reason", ["plain numbers", "prior loss"])
def test_what_cannot_train_together_trains_alone(reason, problems):
    def plain(prior):
        return networks.MLPEnsembleMatchedPrior(
            [2], num_ensemble=2, prior_scale=math.sqrt(prior.temperature)
        )

    changes = {"enn_ctor": plain}
    if reason == "prior loss":
        changes = {
            "prior_loss_ctor": testbed.default_enn_prior_loss(2),
            "prior_loss_freq": 10,
        }
    agent = testbed.VanillaEnnAgent(_own_config(**changes))
    data, priors = _parts(problems)
    samplers = agent.train_many(data, priors)
    assert agent.experiment.step == 20
    np.testing.assert_array_equal(
        _logits(samplers[1]), _logits(agent(data[1], priors[1]))
    )


def test_problems_of_other_shapes_are_refused(problems):
    agent = testbed.make_agent("mlp")
    data, priors = _parts([problems[0], testbed.problem_from_id("classification_2d/0")])
    with pytest.raises(ValueError, match="data of one shape"):
        agent.train_many(data, priors)


@pytest.mark.slow
def test_keys_of_an_ensemble_are_told_apart(problems):
    agent = testbed.make_agent("ensemble", num_ensemble=3, num_batches=2)
    sampler = agent(problems[0].train_data, problems[0].prior_knowledge)
    x = problems[0].train_data.x
    keys = jax.random.split(jax.random.PRNGKey(0), 20)
    few, which = sampler.distinct_keys(keys)
    assert len(few) == 3
    np.testing.assert_array_equal(
        sampler.sample_many(x, few)[which], sampler.sample_many(x, keys)
    )
    same, which = sampler.distinct_keys(keys[:2])
    np.testing.assert_array_equal(same, keys[:2])
    assert list(which) == [0, 1]
