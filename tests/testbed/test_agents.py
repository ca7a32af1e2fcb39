"""Agents as the testbed trains them, beside numbers of the specification."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from enn import losses, networks, testbed
from enn.datasets import ArrayBatch
from enn.loggers import MemoryLogger
from enn.testbed import agents

# fmt: off
# ruff: noqa: E501
# Agent -> KL estimate, its deviation, test accuracy and ECE, logits at two points.
GOLDEN = {
    "mlp": (0.0921523, 0.458685, 0.849151, 0.029960, [[-0.74555, 0.74645], [-1.26084, 1.26142]]),
    "ensemble": (0.0900110, 0.457427, 0.849151, 0.027427, [[-0.65323, 0.64826], [-1.20646, 1.19988]]),
    "ensemble+": (0.1260717, 0.547186, 0.844156, 0.094119, [[-0.34595, 1.78613], [-2.56530, 1.39743]]),
    "dropout": (0.0746992, 0.457755, 0.849151, 0.038655, [[-0.73018, 0.73004], [-1.69406, 1.69309]]),
    "bbb": (0.1085901, 0.534409, 0.849151, 0.074648, [[-0.49818, 1.11238], [-1.02633, 2.97120]]),
    "hypermodel": (0.1270189, 0.496186, 0.849151, 0.111011, [[1.26264, 1.55171], [-1.10650, 2.07050]]),
    "epinet": (0.1231754, 0.531866, 0.849151, 0.085280, [[-0.30477, 3.38116], [0.07076, 3.35040]]),
    "baseline:prior": (0.3492341, 0.545480, 0.846154, 0.316012, [[1.88260, -1.56609], [0.63338, -2.44716]]),
    "baseline:average_class_probs": (0.1784673, 0.414953, 0.849151, 0.159159, [[0.1, 0.9], [0.1, 0.9]]),
}
# fmt: on
SLOW = {"ensemble", "ensemble+", "epinet", "bbb", "dropout"}


@pytest.fixture(scope="module")
def plane():
    return testbed.problem_from_id("classification_2d/75")


def _marks(name):
    if name == "hypermodel":  # 2000 steps enlarge what other rounding changes.
        unlike = jax.config.read("jax_disable_most_optimizations")
        return [pytest.mark.skipif(unlike, reason="the numbers are of optimised code")]
    return [pytest.mark.slow] if name in SLOW else []


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param(n, marks=_marks(n)) for n in GOLDEN])
def test_golden_agents(name, plane):
    kl, std, acc, ece, logits = GOLDEN[name]
    sampler = testbed.make_agent(name)(plane.train_data, plane.prior_knowledge)
    got = sampler(plane.data_sampler.test_x[:2], jax.random.PRNGKey(0))
    np.testing.assert_allclose(got, logits, rtol=5e-4, atol=5e-5)
    quality = plane.evaluate_quality(sampler)
    np.testing.assert_allclose(quality.kl_estimate, kl, rtol=5e-4)
    np.testing.assert_allclose(quality.extra["kl_estimate_std"], std, rtol=5e-4)
    np.testing.assert_allclose(quality.extra["test_acc"], acc, atol=1e-6)
    np.testing.assert_allclose(quality.extra["test_ece"], ece, rtol=5e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("problem_id", "expected"),
    [("classification/200", 1.0898762), ("classification_2d/285", 1.270741)],
)
def test_mlp_on_other_problems(problem_id, expected):
    quality = testbed.run(
        testbed.make_agent("mlp"), testbed.problem_from_id(problem_id)
    )
    np.testing.assert_allclose(quality.kl_estimate, expected, rtol=5e-4)


def test_log_frequencies_are_the_better_baseline(plane):
    agent = testbed.make_agent("baseline:average_class_probs", log_probs=True)
    kl = testbed.run(agent, plane).kl_estimate
    np.testing.assert_allclose(kl, 0.12650, atol=1e-5)


@pytest.mark.parametrize("name", ["knn", "random_forest"])
def test_classifiers_of_scikit_learn(name, plane):
    data, prior = plane.train_data, plane.prior_knowledge
    sampler = testbed.make_agent(name)(data, prior)
    keys = jax.random.split(jax.random.PRNGKey(0), 3)
    logits = sampler.sample_many(data.x, keys)
    assert logits.shape == (3, 10, 2)
    np.testing.assert_array_equal(logits[0], logits[2])
    assert logits.min() >= np.log(np.float32(0.01))
    assert logits.max() <= np.log(np.float32(0.99))
    assert (logits[0].argmax(1) == data.y[:, 0]).mean() >= 0.9
    again = testbed.make_agent(name)(data, prior)
    np.testing.assert_array_equal(again(data.x, keys[0]), logits[0])


@pytest.mark.slow
def test_members_run_once_whatever_the_number_of_keys(plane):
    agent = testbed.make_agent("ensemble", num_ensemble=3, num_batches=2)
    sampler = agent(plane.train_data, plane.prior_knowledge)
    keys = jax.random.split(jax.random.PRNGKey(0), 20)
    many = sampler.sample_many(plane.train_data.x, keys)
    one = [sampler(plane.train_data.x, key) for key in keys]
    np.testing.assert_allclose(many, jnp.stack(one), rtol=1e-6)
    assert len(np.unique(many, axis=0)) == 3


def test_numbers_of_grids():
    sizes = {
        "mlp": 14,
        "logistic_regression": 14,
        "ensemble": 19,
        "ensemble+": 13,
        "hypermodel": 28,
        "dropout": 29,
        "bbb": 32,
        "knn": 12,
        "random_forest": 6,
    }
    assert {n: len(testbed.get_paper_agent(n).sweep()) for n in sizes} == sizes
    assert set(GOLDEN) <= set(testbed.get_implemented_agents())


def test_unknown_names_are_told_with_their_neighbours():
    with pytest.raises(ValueError, match=r"'ensembel'; similar ones are ensemble"):
        testbed.make_agent("ensembel")
    with pytest.raises(ValueError, match=r"no option 'num_ensembles'.*num_ensemble"):
        testbed.make_agent("ensemble", num_ensembles=3)
    with pytest.raises(ValueError, match="kl_method must be 'analytical'"):
        testbed.make_agent("bbb", kl_method="exact")
    prior = testbed.PriorKnowledge(2, 10, 1, 2, temperature=0.25)
    assert agents.scaled_prior(3.0, "sqrt", prior) == 6
    assert agents.scaled_prior(3.0, "linear", prior) == 12
    with pytest.raises(ValueError, match="'sqrt', 'linear' or None, got 'square'"):
        agents.scaled_prior(3.0, "square", prior)


@pytest.mark.parametrize(
    ("num_train", "strategy", "expected"),
    [(1002, True, 5000), (8, True, 200), (10, True, 1000), (8, False, 1000)],
)
def test_steps(num_train, strategy, expected):
    prior = testbed.PriorKnowledge(2, num_train, 1)
    assert agents.scaled_num_batches(1000, strategy)(prior) == expected


@pytest.mark.slow
def test_an_agent_of_ones_own_network(plane):
    logger = MemoryLogger()

    def enn_ctor(prior):
        return networks.MLPEnsembleMatchedPrior([8, prior.num_classes], num_ensemble=3)

    config = testbed.VanillaEnnConfig(
        enn_ctor,
        testbed.default_enn_loss(3, weight_reg_scale=0.5),
        optax.adam(1e-2),
        num_batches=60,
        prior_loss_ctor=testbed.default_enn_prior_loss(3),
        prior_loss_freq=20,
        center_train_data=True,
        logger=logger,
    )
    agent = testbed.VanillaEnnAgent(config)
    quality = testbed.run(agent, plane)
    assert quality.kl_estimate < 0.378  # That of uniform predictions.
    rows = [row for row in logger.rows if row["trainer"] == "loss"]
    assert [row["step"] for row in rows] == list(range(2, 61, 2))
    assert len(logger.rows) - len(rows) == 3


@pytest.mark.slow
def test_regression_losses():
    prior = testbed.PriorKnowledge(2, 10, 1, noise_std=0.5)
    enn = networks.make_einsum_ensemble_mlp_enn([1], 2)
    batch = ArrayBatch(
        x=jnp.ones([4, 2]), y=jnp.zeros([4, 1]), data_index=jnp.arange(4)[:, None]
    )
    params, state = enn.init(jax.random.PRNGKey(0), batch.x, 0)

    def value(loss_ctor):
        loss = loss_ctor(prior, enn)
        return float(loss(enn, params, state, batch, jax.random.PRNGKey(1))[0])

    plain = value(testbed.default_enn_loss(4))
    single = losses.average_single_index_loss(losses.L2Loss(), 4)
    expected = single(enn, params, state, batch, jax.random.PRNGKey(1))[0]
    np.testing.assert_allclose(plain, expected, rtol=1e-6)
    squares = sum(float((leaf**2).sum()) for leaf in jax.tree.leaves(params))
    decayed = value(testbed.default_enn_loss(4, weight_reg_scale=0.5))
    np.testing.assert_allclose(decayed - plain, 0.5**2 / 20 * squares, rtol=1e-4)
    weights = sum(float((p["w"] ** 2).sum()) for p in params.values())
    noisy = [
        value(testbed.gaussian_regression_loss(4, 1.0, decay)) for decay in (0.0, 0.1)
    ]
    assert noisy[0] != plain
    np.testing.assert_allclose(noisy[1] - noisy[0], 0.1 * weights, rtol=1e-4)


def test_agents_that_classify_say_so():
    problem = testbed.problem_from_id("regression/0")
    with pytest.raises(ValueError, match="such as gaussian_regression_loss"):
        testbed.run(testbed.make_agent("mlp"), problem)


def test_configurations_are_data():
    config = testbed.get_paper_agent("ensemble+").default
    assert dataclasses.asdict(config)["prior_scale"] == 3.0
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.num_ensemble = 3


@pytest.mark.slow
def test_sgmcmc_samples_as_the_testbed_does(plane):
    agent = testbed.make_agent(
        "sgmcmc", num_batches=2000, burn_in_time=1000, model_saving_frequency=100
    )
    quality = testbed.run(agent, plane)
    np.testing.assert_allclose(quality.kl_estimate, 0.1108430, rtol=5e-4)
    np.testing.assert_allclose(quality.extra["kl_estimate_std"], 0.405168, rtol=5e-4)
    np.testing.assert_allclose(quality.extra["test_acc"], 0.816184, atol=1e-6)
    np.testing.assert_allclose(quality.extra["test_ece"], 0.056182, rtol=2e-3)
    assert quality.extra["num_distinct_samples"] == 11
    with pytest.raises(ValueError, match="leaves no sample of num_batches=2000"):
        testbed.make_agent("sgmcmc", num_batches=2000)


@pytest.mark.slow
def test_deep_kernel_is_the_posterior_of_unit_features(plane):
    data, prior = plane.train_data, plane.prior_knowledge
    sampler = testbed.make_agent("deep_kernel", num_batches=20)(data, prior)
    temperature, scale = 0.1, 2.0
    s2 = 4 * temperature

    def features(x):
        f = np.asarray(x, float)
        for layer in ("mlp/~/linear_0", "mlp/~/linear_1"):
            w, b = (np.asarray(sampler.params[layer][name], float) for name in "wb")
            f = np.maximum(f @ w + b, 0)
        return f / (np.linalg.norm(f, axis=1, keepdims=True) + 1e-6)

    zero = jnp.zeros(sampler.enn.indexer(jax.random.PRNGKey(0)).shape)
    phi = features(data.x)
    x = plane.data_sampler.test_x[:3]
    precision = s2 * np.eye(phi.shape[1]) + phi.T @ phi
    expected = features(x) @ np.linalg.solve(precision, features(x).T)
    expected *= scale**2 * s2 / (10 * temperature)

    def class_0(z):
        return networks.parse_net_output(
            sampler.enn.apply(sampler.params, sampler.state, x, z)[0]
        )[:, 0]

    slopes = jax.jacobian(class_0)(zero)
    np.testing.assert_allclose(slopes @ slopes.T, expected, rtol=1e-3, atol=1e-4)
