"""Problems, their keys and their estimates, beside numbers of the specification."""

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from enn import testbed

PLANE = "classification_2d/75"


def uniform(data, prior):
    return lambda x, key: jnp.zeros([len(x), prior.num_classes])


def test_every_sweep_has_its_problems():
    sizes = {
        "CLASSIFICATION_2D": 420,
        "CLASSIFICATION": 360,
        "REGRESSION": 270,
        "ENN_PAPER": 270,
        "CLASSIFICATION_2D_TEST": 7,
        "CLASSIFICATION_TEST": 4,
        "REGRESSION_TEST": 1,
        "ENN_PAPER_TEST": 9,
    }
    assert {name: len(getattr(testbed, name)) for name in sizes} == sizes
    assert len(testbed.SETTINGS) == 1342 - 1


@pytest.mark.parametrize(
    ("problem_id", "seed", "num_train", "dim", "temperature", "tau"),
    [
        ("classification_2d/0", 1, 1, 2, 0.01, 1),
        (PLANE, 76, 10, 2, 0.1, 1),
        ("classification_2d/209", 210, 1000, 2, 0.5, 1),
        ("classification_2d/285", 76, 10, 2, 0.1, 10),
        ("classification/97", 98, 1000, 10, 0.1, 1),
        ("classification/200", 21, 20, 2, 0.1, 10),
        ("classification/280", 101, 1000, 10, 0.5, 10),
        ("classification_2d_test/6", 19, 1000, 2, 0.01, 1),
        ("classification_test/3", 10, 2000, 2, 0.01, 1),
    ],
)
def test_settings(problem_id, seed, num_train, dim, temperature, tau):
    config = testbed.SETTINGS[problem_id]
    prior = config.prior_knowledge
    assert config.seed == seed
    assert (prior.num_train, prior.input_dim, prior.tau) == (num_train, dim, tau)
    assert prior.temperature == temperature
    assert config.meta_data["temperature"] == temperature


def test_settings_of_regression():
    config = testbed.SETTINGS["regression/134"]  # 90 a_D + 30 a_ratio + 10 a_noise + s
    prior = config.prior_knowledge
    assert (config.seed, prior.input_dim, prior.num_train) == (135, 10, 100)
    assert (prior.noise_std, config.num_enn_samples) == (0.1, 100)
    assert testbed.SETTINGS["regression_test/0"].seed == 11
    assert [testbed.SETTINGS[i].seed for i in testbed.ENN_PAPER_TEST] == list(
        range(2, 27, 3)
    )
    assert testbed.SETTINGS["enn_paper/134"].epistemic_only


@pytest.mark.parametrize(
    ("problem_id", "rows", "labels", "sums"),
    [
        (
            PLANE,
            [[0.462060, -1.392852], [1.006021, 0.485317], [0.362156, 0.151203]],
            [1, 1, 1, 1, 1, 1, 1, 1, 1, 0],
            (-1.004099, 9),
        ),
        (
            "classification_2d/209",
            [[2.534681, -0.403630], [-0.496592, 1.641091], [1.353477, 1.877485]],
            [0, 0, 1, 0, 1, 1, 0, 1, 0, 1],
            (15.318587, 695),
        ),
        (
            "classification/200",
            [[-1.213514, 0.173992], [0.726095, -0.002912], [0.608808, 0.678158]],
            [0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
            (5.488423, 1),
        ),
    ],
)
def test_training_data(problem_id, rows, labels, sums):
    x, y = testbed.problem_from_id(problem_id).train_data
    np.testing.assert_allclose(x[:3], rows, atol=1e-6)
    assert y[:10, 0].tolist() == labels
    assert y.dtype == jnp.int32
    np.testing.assert_allclose(x.sum(), sums[0], atol=2e-5)
    assert y.sum() == sums[1]


def test_taus_share_their_world():
    one = testbed.problem_from_id(PLANE)
    ten = testbed.problem_from_id("classification_2d/285")
    np.testing.assert_array_equal(one.train_data.x, ten.train_data.x)
    key = jax.random.PRNGKey(0)
    (x, y), log_likelihood = one.data_sampler.test_data(key)
    np.testing.assert_allclose(x, [[1.004014, -0.906337]], atol=1e-6)
    assert y.tolist() == [[1]]
    np.testing.assert_allclose(log_likelihood, -0.512747, atol=1e-6)
    (xs, ys), joint = ten.data_sampler.test_data(key)
    np.testing.assert_array_equal(xs[:1], x)
    assert ys[:, 0].tolist() == [1, 1, 1, 0, 1, 1, 1, 1, 0, 1]
    np.testing.assert_allclose(joint, -2.276639, atol=2e-6)
    many, _ = ten.data_sampler.test_batches(key[None])
    np.testing.assert_array_equal(many.x[0], xs)


def test_dyadic_test_inputs_repeat_two_points():
    sampler = testbed.problem_from_id("classification/200").data_sampler
    (x, y), log_likelihood = sampler.test_data(jax.random.PRNGKey(0))
    np.testing.assert_allclose(x[0], [-0.574780, 0.799837], atol=1e-6)
    assert y[:, 0].tolist() == [1, 1, 1, 0, 1, 0, 1, 1, 1, 0]
    np.testing.assert_allclose(log_likelihood, -5.452560, atol=2e-6)
    assert len(np.unique(x, axis=0)) == 2


def test_the_network_of_the_truth():
    logits = testbed.problem_from_id(PLANE).data_sampler.logit_fn
    points = jnp.array([[0.0, 0.0], [1.0, 1.0]])
    expected = [[2.090612, 2.912977], [0.532731, 6.611104]]
    np.testing.assert_allclose(logits(points), expected, rtol=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("problem_id", "kl", "std", "accs", "eces"),
    [
        ("classification_2d/0", 0.6783353, 0.104638, (1, 0.139860), (0.5, 0.360140)),
        (PLANE, 0.3781139, 0.568279, (0.1, 0.150849), (0.4, 0.349151)),
        ("classification_2d/285", 4.005765, 1.60067, (0.1, 0.166337), (0.4, 0.333663)),
        ("classification/200", 5.0233207, 2.14949, (0.95, 0.90099), (0.45, 0.40099)),
    ],
)
def test_uniform_predictions(problem_id, kl, std, accs, eces):
    quality = testbed.run(uniform, testbed.problem_from_id(problem_id))
    np.testing.assert_allclose(quality.kl_estimate, kl, rtol=1e-6)
    extra = quality.extra
    np.testing.assert_allclose(extra["kl_estimate_std"], std, rtol=1e-5)
    got = [
        extra[f"{split}_{name}"]
        for name in ("acc", "ece")
        for split in ("train", "test")
    ]
    np.testing.assert_allclose(got, [*accs, *eces], atol=1e-6)
    assert extra["pct_finite_kl"] == 1
    assert extra["num_distinct_samples"] == 1
    assert extra["stream"] == "default"


@pytest.mark.slow
def test_the_published_stream_has_the_published_problems():
    with testbed.published_stream():
        problem = testbed.problem_from_id(PLANE)
        quality = testbed.run(uniform, problem)
    expected = [[-0.955462, -0.036209], [-1.787127, -0.960090]]
    np.testing.assert_allclose(problem.train_data.x[:2], expected, atol=1e-6)
    assert problem.train_data.y[:, 0].tolist() == [0, 1, 1, 1, 1, 1, 0, 0, 1, 1]
    np.testing.assert_allclose(quality.kl_estimate, 0.13404496, rtol=1e-6)
    assert quality.extra["stream"] == "published"
    assert testbed.stream_name() == "default"


def test_an_unknown_problem_is_told_with_its_neighbours():
    with pytest.raises(
        ValueError, match=r"'classification_2d/420'.*classification_2d/4"
    ):
        testbed.problem_from_id("classification_2d/420")


@pytest.mark.slow
def test_rejected_classes_become_rare():
    prior = testbed.PriorKnowledge(2, 400, 1, 2, 2, temperature=0.1)
    config = testbed.ProblemConfig(prior, seed=3)
    plain = testbed.problem_from_config(config)
    shifted = testbed.problem_with_distribution_shift(
        config, testbed.ShiftConfig(0.9, 0.5)
    )
    assert shifted.train_data.x.shape == (400, 2)
    rng = hk.PRNGSequence(jax.random.PRNGKey(3))
    next(rng)  # The truth.
    filtered = hk.PRNGSequence(next(rng))
    (rejected,) = jax.random.randint(next(filtered), (1,), 0, 2).tolist()
    share, before = (
        float((problem.train_data.y == rejected).mean()) for problem in (shifted, plain)
    )
    # A row of the class stays with probability 0.1.
    after = 0.1 * before / (0.1 * before + 1 - before)
    assert abs(share - after) < 4 * np.sqrt(after * (1 - after) / 400) + 0.02
    same = testbed.problem_with_distribution_shift(
        config, testbed.ShiftConfig(0.0, 0.5)
    )
    assert same.train_data.x.shape == (400, 2)


def test_too_few_rows_left():
    logit_fn = lambda x: jnp.stack([x[:, 0] * 0, x[:, 0] * 0 - 50], axis=1)  # noqa: E731
    for seed in range(8):  # One of them rejects the only class that there is.
        try:
            testbed.make_filtered_gaussian_data(
                1, logit_fn, 1.0, 0.5, 10, jax.random.PRNGKey(seed), max_itr=2
            )
        except ValueError as error:
            assert "fewer than 10" in str(error)  # noqa: PT017
            return
    pytest.fail("no error")


def test_weibull_inputs_surround_their_first():
    x = testbed.make_weibull_sampler(3)(jax.random.PRNGKey(1), 2000)
    key, *_ = jax.random.split(jax.random.PRNGKey(1), 3)
    np.testing.assert_allclose(x[0], jax.random.normal(key, [3]))
    distances = np.linalg.norm((x - x[:1])[1:], axis=1)
    # P(radius > r) = exp(-(r / scale)^c): half are below scale (ln 2)^(1/c), times the
    # length of the direction, about 1.6.
    c = np.log10(np.log2(10))
    half = np.log(2) ** (1 / c) / np.log(10) ** (1 / c)
    within = np.mean(distances < half * 1.6)
    assert abs(within - 0.5) < 0.05


@pytest.mark.parametrize("kappa", [1, 3])
def test_polyadic_inputs(kappa):
    x = testbed.make_polyadic_sampler(4, kappa)(jax.random.PRNGKey(0), 200)
    assert len(np.unique(x, axis=0)) == kappa
    with pytest.raises(ValueError, match="kappa must be >= 1"):
        testbed.make_polyadic_sampler(4, 0)
