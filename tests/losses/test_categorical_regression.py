import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from hypothesis import strategies as st

from enn import losses, networks
from tests.losses import cases

ATOMS = np.array([-2.0, 0.0, 1.0], np.float32)
TWO_HOT = jax.jit(losses.transform_to_2hot)


def _output(prior, num_rows=2):
    rng = np.random.default_rng(0)
    train = rng.normal(size=(num_rows, 1, 3)).astype(np.float32)
    return networks.OutputWithPrior(train, prior, {"atoms": ATOMS})


@pytest.mark.parametrize(
    ("target", "wanted"),
    [
        (-1, [1, 0, 0]),
        (0, [1, 0, 0]),
        (0.25, [0.75, 0.25, 0]),
        (1, [0, 1, 0]),
        (1.5, [0, 0.5, 0.5]),
        (2, [0, 0, 1]),
        (3, [0, 0, 1]),
    ],
)
def test_two_hot_examples(target, wanted):
    got = losses.transform_to_2hot(target, np.array([0.0, 1.0, 2.0]))
    np.testing.assert_allclose(got, wanted)


def test_target_of_nan_gives_nan():
    assert np.isnan(losses.transform_to_2hot(np.nan, ATOMS)).any()
    out, batch = _output([[0.0], [0.0]]), cases.batch_of([[np.nan], [0.0]])
    assert np.isnan(cases.single_value(losses.Cat2HotRegression(), out, batch))


@pytest.mark.parametrize("target", [-1.0, 5.0, 7.0])
def test_single_bin_gets_all(target):
    # It gave NaN.
    support = np.array([5.0])
    np.testing.assert_array_equal(losses.transform_to_2hot(target, support), [1.0])
    assert jax.jacobian(losses.transform_to_2hot)(target, support) == 0


@hypothesis.given(
    target=st.floats(-4, 4, width=32),
    gaps=st.lists(st.sampled_from([0.0, 0.25, 1.0, 3.0]), min_size=4, max_size=4),
)
@hypothesis.settings(deadline=None, max_examples=30)
def test_two_hot_is_a_distribution_with_the_mean_of_the_target(target, gaps):
    support = np.cumsum(np.array([-2.0, *gaps], np.float32))
    probabilities = np.asarray(TWO_HOT(target, support))
    assert (probabilities >= 0).all()
    assert np.count_nonzero(probabilities) <= 2
    np.testing.assert_allclose(probabilities.sum(), 1, rtol=1e-6)
    clipped = np.clip(target, support[0], support[-1])
    np.testing.assert_allclose(probabilities @ support, clipped, rtol=1e-5, atol=1e-6)


def test_two_hot_is_differentiable_in_the_target():
    slope = jax.jacobian(losses.transform_to_2hot)(-0.5, ATOMS)
    np.testing.assert_allclose(slope, [-0.5, 0.5, 0.0])


@pytest.mark.parametrize(
    ("target", "support", "message"),
    [
        (np.zeros(2), ATOMS, r"target must have shape of a scalar, got \[2\]"),
        (0.0, np.zeros([2, 2]), r"support must have shape \[num_bins\], got \[2, 2\]"),
        (0.0, ATOMS[::-1], "support must be in ascending order"),
    ],
)
def test_two_hot_checks_its_arguments(target, support, message):
    with pytest.raises(ValueError, match=message):
        losses.transform_to_2hot(target, support)


@pytest.mark.parametrize(
    "weights", [None, np.array([[2.0], [5.0]], np.float32)], ids=["ones", "weights"]
)
@pytest.mark.parametrize("num_rows", [1, 2])
def test_loss_is_cross_entropy_to_what_the_prior_leaves(num_rows, weights):
    # A batch of one row used to fail.
    y, prior = np.array([[0.75], [-1.0]])[:num_rows], np.array([[0.25], [0.5]])
    out = _output(prior[:num_rows], num_rows)
    weights = weights if weights is None else weights[:num_rows]
    batch = cases.batch_of(y, weights=weights)
    loss = cases.single_value(losses.Cat2HotRegression(), out, batch)
    # Targets 0.5 and -1.5 between atoms -2, 0 and 1.
    two_hot = np.array([[0, 0.5, 0.5], [0.75, 0.25, 0]])[:num_rows]
    log_probs = scipy.special.log_softmax(out.train[:, 0], axis=-1)
    rows = -(two_hot * log_probs).sum(axis=1, keepdims=True)
    rows *= 1 if weights is None else weights
    np.testing.assert_allclose(loss, rows.mean(), rtol=1e-5)


def test_prior_gets_no_gradient():
    def loss(prior):
        return cases.single_value(
            losses.Cat2HotRegression(), _output(prior), cases.batch_of(np.ones([2, 1]))
        )

    np.testing.assert_array_equal(
        jax.jit(jax.grad(loss))(jnp.full([2, 1], 0.5)), [[0], [0]]
    )


@pytest.mark.parametrize(
    ("out", "y", "message"),
    [
        (jnp.ones([2, 1]), np.ones([2, 1]), "must return an OutputWithPrior.*'atoms'"),
        (networks.OutputWithPrior(jnp.ones([2, 1])), np.ones([2, 1]), "'atoms'"),
        (_output([[0.0], [0.0]]), np.ones([2, 2]), r"batch.y .* \[batch, 1\], got"),
        (_output([[0.0], [0.0]]), np.ones([3, 1]), r"train must .* = \[3, 1, 3\]"),
        (_output([0.0]), np.ones([2, 1]), r"prior must .* = \[2, 1\], got \[1\]"),
    ],
)
def test_loss_checks_output_and_targets(out, y, message):
    with pytest.raises(ValueError, match=message):
        cases.single_value(losses.Cat2HotRegression(), out, cases.batch_of(y))


def test_weight_of_the_farther_bin_is_not_rounded_away():
    got = losses.transform_to_2hot(np.float32(1e-12), np.array([0.0, 1.0]))
    np.testing.assert_allclose(got, [1, 1e-12], rtol=1e-6)
