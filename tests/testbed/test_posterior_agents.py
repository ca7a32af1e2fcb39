"""Posterior approximations as agents of the testbed, and temperature scaling.

Agents are compared with formulas in NumPy for weights that are hardly trained; that
trained ones are as good as an MLP is left to .ci/run.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from enn import calibration, losses, networks, testbed
from enn.datasets import ArrayBatch

TEMPERATURE = 0.1
DELTA = 2 * TEMPERATURE**0.5 * 2  # Of the decay √T D / N, with D = 2 inputs.
UNIFORM, MLP = 0.3781139, 0.0921523  # KL estimates of the specification.
STANDARD_ERROR = 0.46 / 1000**0.5  # Of an estimate from 1000 inputs.


@pytest.fixture(scope="module")
def plane():
    return testbed.problem_from_id("classification_2d/75")


def _train(name, problem, **options):
    agent = testbed.make_agent(name, **options)
    return agent(problem.train_data, problem.prior_knowledge)


def _logits(sampler, x, index):
    out, _ = sampler.enn.apply(sampler.params, sampler.state, x, index)
    return networks.parse_net_output(out)


def _covariance(sampler, x):
    """Returns the covariance of the logits at `x`, of a network linear in z ~ N(0, I).

    Its shape is `[batch, num_classes, batch, num_classes]`.
    """
    zero = jnp.zeros(sampler.enn.indexer(jax.random.PRNGKey(0)).shape)
    slopes = jax.jacobian(lambda z: _logits(sampler, x, z))(zero)
    return np.einsum("ncz,mdz->ncmd", slopes, slopes)


def _output_curvature(logits):
    probs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return np.stack([np.diag(p) - np.outer(p, p) for p in probs])


def _mlp(params, x):
    """Returns features with a one, and logits, of an MLP with one hidden layer."""
    (w0, b0), (w1, b1) = (
        [np.asarray(params[f"mlp/~/linear_{i}"][k], float) for k in "wb"]
        for i in range(2)
    )
    hidden = np.maximum(np.asarray(x, float) @ w0 + b0, 0)
    return np.concatenate([hidden, np.ones([len(x), 1])], axis=1), hidden @ w1 + b1


@pytest.mark.slow
def test_laplace_has_the_prior_of_its_weight_decay(plane):
    sampler = _train("laplace", plane, hidden_sizes=(4,), num_batches=5)
    x = plane.data_sampler.test_x[:3]
    features, logits = _mlp(sampler.params, plane.train_data.x)
    at_x, mean = _mlp(sampler.params, x)
    zero = jnp.zeros(sampler.enn.indexer(jax.random.PRNGKey(0)).shape)
    np.testing.assert_allclose(_logits(sampler, x, zero), mean, rtol=1e-4)
    hessians = _output_curvature(logits)
    precision = np.einsum("nf,ng,ncd->fcgd", features, features, hessians)
    covariance = np.linalg.inv(precision.reshape(10, 10) + DELTA * np.eye(10))
    covariance = covariance.reshape(5, 2, 5, 2)
    expected = np.einsum("nf,fcgd,mg->ncmd", at_x, covariance, at_x)
    np.testing.assert_allclose(_covariance(sampler, x), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_linearised_laplace_has_the_prior_of_its_weight_decay(plane):
    sampler = _train("linearised_laplace", plane, hidden_sizes=(4,), num_batches=5)
    own = {k: p for k, p in sampler.params.items() if k.startswith("mlp")}
    flat, unravel = jax.flatten_util.ravel_pytree(own)

    def logits(flat, x):
        params = unravel(flat)
        first, last = params["mlp/~/linear_0"], params["mlp/~/linear_1"]
        hidden = jax.nn.relu(x @ first["w"] + first["b"][None])
        return hidden @ last["w"] + last["b"][None]

    x = plane.data_sampler.test_x[:3]
    at_data, at_x = (
        np.asarray(jax.jacobian(logits)(flat, inputs), float)
        for inputs in (plane.train_data.x, x)
    )
    hessians = _output_curvature(np.asarray(logits(flat, plane.train_data.x)))
    precision = np.einsum("ncp,ncd,ndq->pq", at_data, hessians, at_data)
    covariance = np.linalg.inv(precision + DELTA * np.eye(flat.size))
    expected = np.einsum("ncp,pq,mdq->ncmd", at_x, covariance, at_x)
    np.testing.assert_allclose(_covariance(sampler, x), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("likelihood", ["gaussian", "categorical"])
def test_sngp_has_the_posterior_of_its_random_features(likelihood, plane):
    sampler = _train(
        "sngp",
        plane,
        hidden_sizes=(4,),
        num_features=8,
        num_batches=5,
        likelihood=likelihood,
    )

    def features(x):
        enn = networks.make_sngp_mlp_enn([4, 2], 8, is_training=False)
        params = {k: p for k, p in sampler.params.items() if k != "gaussian_last_layer"}
        out, _ = enn.apply(params, sampler.state, x, jax.random.PRNGKey(0))
        return np.asarray(out.extra["features"], float), np.asarray(out.train)

    x = plane.data_sampler.test_x[:3]
    (phi, logits), (at_x, _) = features(plane.train_data.x), features(x)
    hessians = _output_curvature(logits)
    expected = np.zeros([3, 2, 3, 2])
    for c in range(2):
        weights = np.ones(10) if likelihood == "gaussian" else hessians[:, c, c]
        precision = phi.T @ (weights[:, None] * phi) + np.eye(8)
        expected[:, c, :, c] = at_x @ np.linalg.solve(precision, at_x.T)
    np.testing.assert_allclose(_covariance(sampler, x), expected, rtol=1e-3, atol=1e-4)


def _setup(name, problem, **options):
    """Returns network, parameters, state, loss and the training data as a batch."""
    config = testbed.make_agent(name, **options).config
    prior = problem.prior_knowledge
    enn = config.enn_ctor(prior)
    data = problem.train_data
    batch = ArrayBatch(x=data.x, y=data.y, data_index=np.arange(len(data.y))[:, None])
    key = jax.random.PRNGKey(0)
    params, state = enn.init(key, batch.x, enn.indexer(key))
    loss = config.loss_ctor(prior, enn)(enn, params, state, batch, key)[0]
    return enn, params, state, loss, batch


def _decay(params, prefix):
    squares = [
        float(jnp.sum(jnp.square(leaf)))
        for name, module in params.items()
        if name.startswith(prefix)
        for leaf in module.values()
    ]
    return TEMPERATURE**0.5 * 2 / 10 * sum(squares)


@pytest.mark.slow
def test_vbll_decays_its_trunk_and_has_its_prior_on_the_last_layer(plane):
    enn, params, state, loss, batch = _setup("vbll", plane, hidden_sizes=(4,))
    out, _ = enn.apply(params, state, batch.x, enn.indexer(jax.random.PRNGKey(0)))
    m, q = (np.asarray(out.extra[f"last_layer_{n}"]) for n in ("mean", "variance"))
    own = np.take_along_axis(m, batch.y, axis=1)[:, 0]
    bound = np.mean(own - np.log(np.exp(m + q / 2).sum(axis=1)))
    (last,) = (p for name, p in params.items() if not name.startswith("mlp"))
    mean = np.asarray(last["w"], float)
    kl = 0.0
    for c in range(2):
        root = np.tril(np.asarray(last["off_diagonal"], float)[c], -1)
        root += np.diag(np.exp(np.asarray(last["log_scale"], float)[:, c]))
        moments = np.sum(root**2) + np.sum(mean[:, c] ** 2)
        log_dets = -5 * np.log(DELTA) - np.linalg.slogdet(root @ root.T)[1]
        kl += 0.5 * (DELTA * moments - 5 + log_dets)
    expected = -bound + kl / 10 + _decay(params, "mlp")
    np.testing.assert_allclose(loss, expected, rtol=1e-4)


@pytest.mark.slow
def test_the_hyper_head_trains_on_all_signed_axes(plane):
    options = {"hidden_sizes": (4,), "index_dim": 3}
    enn, params, state, loss, batch = _setup("linear_hyper_head", plane, **options)
    axes = np.sqrt(3) * np.concatenate([np.eye(3), -np.eye(3)])
    nlls = []
    for axis in axes:
        out, _ = enn.apply(params, state, batch.x, jnp.asarray(axis, jnp.float32))
        logits = np.asarray(out.preds, float)
        own = np.take_along_axis(logits, batch.y, axis=1)[:, 0]
        nlls.append(np.mean(np.log(np.exp(logits).sum(axis=1)) - own))
    trained = [_decay(params, p) for p in ("mlp", "linear")]  # Head and hyper-head.
    np.testing.assert_allclose(loss, np.mean(nlls) + sum(trained), rtol=1e-4)

    # The prior stays.
    sampler = _train("linear_hyper_head", plane, num_batches=3, **options)
    np.testing.assert_array_equal(
        sampler.params["prior"]["factor"], params["prior"]["factor"]
    )
    prior = jax.vmap(lambda z: enn.apply(params, state, batch.x, z)[0].prior)(
        jnp.asarray(axes[:3] / np.sqrt(3), jnp.float32)
    )
    hidden, _ = _mlp({**params, "mlp/~/linear_1": params["linear"]}, batch.x)
    expected = np.einsum(
        "nf,fcr->rnc", hidden[:, :-1], np.asarray(params["prior"]["factor"])
    )
    scale = 3 / TEMPERATURE**0.5  # The number of ensemble+.
    np.testing.assert_allclose(prior, scale * expected, rtol=1e-4, atol=1e-5)


def _initial_params(enn, problem):
    """Returns the parameters from which an agent of seed 0 trains `enn`."""
    still = testbed.VanillaEnnConfig(
        lambda _: enn, testbed.default_enn_loss(1), optax.set_to_zero(), num_batches=1
    )
    agent = testbed.VanillaEnnAgent(still)
    return agent(problem.train_data, problem.prior_knowledge).params


@pytest.mark.slow
def test_swag_averages_the_iterates_of_each_run(plane):
    sampler = _train(
        "multiswag",
        plane,
        num_runs=2,
        num_samples=3,
        scale=0.0,
        num_hidden=4,
        num_batches=6,
        burn_in_time=2,
        model_saving_frequency=2,
    )
    assert {len(leaf) for leaf in jax.tree.leaves(sampler.params)} == {6}
    # A batch of 100 holds each of the 10 rows ten times: SGD sees no noise.
    data = plane.train_data
    both = networks.make_einsum_ensemble_mlp_enn([4, 4, 2], 2, nonzero_bias=False)
    start = _initial_params(both, plane)
    one = networks.make_einsum_ensemble_mlp_enn([4, 4, 2], 1, nonzero_bias=False)
    loss_fn = losses.add_l2_weight_decay(
        losses.average_single_index_loss(losses.XentLoss(2), 1), 0.2 * TEMPERATURE**0.5
    )
    optimizer = optax.sgd(0.02, 0.9)
    batch = ArrayBatch(x=data.x, y=data.y)
    slopes = jax.jit(
        jax.grad(lambda p: loss_fn(one, p, {}, batch, jax.random.key(0))[0])
    )
    for run in range(2):
        params = jax.tree.map(lambda leaf: leaf[..., run, None], start)  # noqa: B023
        state, kept = optimizer.init(params), []
        for step in range(1, 7):
            updates, state = optimizer.update(slopes(params), state)
            params = optax.apply_updates(params, updates)
            kept += [params] if step % 2 == 0 else []
        mean = jax.tree.map(lambda *leaves: jnp.mean(jnp.stack(leaves), 0), *kept)
        for index in range(3):
            got = _logits(sampler, data.x, 3 * run + index)
            expected = one.apply(mean, {}, data.x, 0)[0]
            np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_temperature_is_fitted_to_rows_held_out():
    problem = testbed.problem_from_id("classification_2d/135")  # 100 rows.
    data, prior = problem.train_data, problem.prior_knowledge
    options = {"num_batches": 50}
    sampler = _train("temperature", problem, options=options)
    agent = testbed.make_agent("mlp", **options)
    seen = testbed.Data(data.x[:80], data.y[:80])
    base = agent(seen, testbed.PriorKnowledge(2, 80, 1, 2, 2, None, prior.temperature))
    key = jax.random.PRNGKey(0)
    logits = base(data.x, key)
    temperature = calibration.fit_temperature(logits[None, 80:], data.y[80:])
    assert abs(temperature - 1) > 0.05
    np.testing.assert_allclose(
        sampler(data.x, key), logits / temperature, rtol=1e-3, atol=1e-4
    )


@pytest.mark.slow
def test_without_a_best_temperature_it_is_one(plane):
    data, prior = plane.train_data, plane.prior_knowledge
    few = testbed.Data(data.x[:4], data.y[:4])
    key = jax.random.PRNGKey(0)
    options = {"num_batches": 3}
    scaled = testbed.make_agent("temperature", options=options)(few, prior)
    prior = testbed.PriorKnowledge(2, 4, 1, 2, temperature=TEMPERATURE)
    plain = testbed.make_agent("mlp", **options)(few, prior)
    np.testing.assert_allclose(scaled(data.x, key), plain(data.x, key), rtol=1e-6)


def test_settings_that_cannot_be(plane):
    with pytest.raises(ValueError, match="needs a hidden layer: hidden_sizes is empty"):
        testbed.make_agent("laplace", hidden_sizes=())
    with pytest.raises(ValueError, match=r"held_out must be in \(0, 1\), got 1"):
        testbed.make_agent("temperature", held_out=1.0)
    with pytest.raises(ValueError, match="no option 'member'"):
        testbed.make_agent("temperature", options={"member": 3})
    with pytest.raises(ValueError, match="'baseline:prior' does not"):
        _train("temperature", plane, agent="baseline:prior")


def test_numbers_of_grids():
    sizes = {
        "laplace": 8,
        "linearised_laplace": 4,
        "linear_hyper_head": 10,
        "vbll": 8,
        "sngp": 12,
        "swag": 4,
        "multiswag": 3,
        "temperature": 3,
    }
    assert {n: len(testbed.get_paper_agent(n).sweep()) for n in sizes} == sizes
    assert testbed.get_paper_agent("multiswag").default.num_runs == 10


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vbll", "linear_hyper_head"])
def test_worlds_train_together(name):
    problems = [testbed.problem_from_id(f"classification_2d/{i}") for i in (75, 85)]
    options = {"hidden_sizes": (4,), "num_batches": 5}
    data = [problem.train_data for problem in problems]
    priors = [problem.prior_knowledge for problem in problems]
    together = testbed.make_agent(name, **options).train_many(data, priors)
    key = jax.random.PRNGKey(2)
    for sampler, problem in zip(together, problems, strict=True):
        alone = _train(name, problem, **options)
        x = problem.data_sampler.test_x[:5]
        np.testing.assert_allclose(sampler(x, key), alone(x, key), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("laplace", {}),
        ("linearised_laplace", {}),
        ("linear_hyper_head", {"prior_scale": 3 / 50**0.5}),
        ("vbll", {}),
        ("swag", {}),
    ],
)
def test_agents_are_about_as_good_as_an_mlp(name, options, plane):
    kl = plane.evaluate_quality(_train(name, plane, **options)).kl_estimate
    assert kl < MLP + 3 * STANDARD_ERROR


@pytest.mark.slow
def test_sngp_is_better_than_uniform_predictions(plane):
    kl = plane.evaluate_quality(_train("sngp", plane)).kl_estimate
    assert kl < UNIFORM - 10 * STANDARD_ERROR
