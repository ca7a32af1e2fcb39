import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special
import scipy.stats
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from enn import data_noise, losses, networks
from enn.data_noise import bootstrapping
from tests.losses import cases
from tests.support import golden
from tests.support.fast import compiled_init

Y = np.array([[1.0], [2.0], [4.0]])
OUT = np.float32([[0.0], [4.0], [4.0]])
LOGITS = np.float32([[1.0, 2.0, 0.5], [0.0, -1.0, 3.0], [2.0, 2.0, 2.0]])
LABELS = np.array([[1], [0], [2]])
WEIGHTS = np.array([[2.0], [0.0], [0.5]])


def _row_losses(logits, labels):
    return -scipy.special.log_softmax(logits, axis=1)[np.arange(len(labels)), labels]


@jax.jit
@jax.value_and_grad
def _xent_and_gradient(logits, labels):
    batch = cases.batch_of(Y).replace(y=labels)
    return cases.single_value(losses.XentLoss(3), logits, batch)


@pytest.mark.parametrize(
    ("weights", "wanted"),
    [(None, 5 / 3), (np.array([[2], [3], [9]]), 14 / 3), (np.zeros([3, 1]), 0.0)],
)
def test_l2_divides_by_the_number_of_rows(weights, wanted):
    batch = cases.batch_of(Y, weights=weights)
    loss = cases.single_value(losses.L2Loss(), OUT, batch)
    np.testing.assert_allclose(loss, wanted, rtol=1e-6)
    assert loss.dtype == jnp.float32


def test_l2_needs_no_data_index_and_counts_the_prior():
    # Weights used to be made from data_index, which the loss never needs.
    out = networks.OutputWithPrior(np.ones([3, 1]), prior=OUT - 1)
    batch = cases.batch_of(Y, data_index=None)
    assert cases.single_value(losses.L2Loss(), out, batch) == pytest.approx(5 / 3)


@pytest.mark.parametrize(
    ("out", "y", "weights", "name"),
    [
        (np.ones([3, 2]), Y[:, 0], None, "batch.y"),
        (OUT[:, 0], Y, None, "network output"),
        (np.ones([3, 2]), Y, None, "batch.y"),
        (OUT[:1], Y, None, "batch.y"),
        (OUT, Y, np.ones(3), "batch.weights"),
        (OUT, Y, np.ones([1, 1]), "batch.weights"),
    ],
)
def test_l2_rejects_shapes_that_would_broadcast(out, y, weights, name):
    batch = cases.batch_of(y, weights=weights)
    with pytest.raises(
        ValueError, match=rf"{name} must have shape \[batch, (1|num_outputs)\]"
    ):
        cases.single_value(losses.L2Loss(), out, batch)


@pytest.mark.strict
@pytest.mark.parametrize("dtype", ["int32", "uint8", "float32", "float64"])
def test_xent_is_the_weighted_log_probability_of_the_label(dtype):
    batch = cases.batch_of(LABELS.astype(dtype), weights=WEIGHTS.astype("float32"))
    apply = cases.fixed_output(LOGITS)
    loss, (_, metrics) = losses.XentLoss(3)(apply, {}, {}, batch, 0)
    wanted = np.mean(WEIGHTS[:, 0] * _row_losses(LOGITS, LABELS[:, 0]))
    np.testing.assert_allclose(loss, wanted, rtol=1e-6)
    assert metrics == {"loss": loss}
    assert loss.dtype == jnp.float32


@hypothesis.given(
    logits=hnp.arrays(np.float32, (4, 3), elements=st.floats(-300, 300, width=32)),
    labels=hnp.arrays(np.int32, (4, 1), elements=st.integers(0, 2)),
)
@hypothesis.settings(deadline=None, max_examples=30)
def test_xent_and_its_gradient_are_exact_and_finite(logits, labels):
    loss, grad = _xent_and_gradient(logits, labels)
    wanted = np.mean(_row_losses(logits.astype(float), labels[:, 0]))
    np.testing.assert_allclose(loss, wanted, rtol=1e-5, atol=1e-6)
    wanted = (scipy.special.softmax(logits, axis=1) - np.eye(3)[labels[:, 0]]) / 4
    np.testing.assert_allclose(grad, wanted, atol=1e-6)


@pytest.mark.parametrize("wrong", [3, -1, 1000, 0.5, np.nan])
def test_wrong_label_raises_eagerly_and_counts_zero_inside_jit(wrong):
    labels = np.array([[1], [wrong], [2]])
    loss_fn = losses.XentLoss(3)
    with pytest.raises(ValueError, match=r"integers in \[0, 3\), got .* in row 1"):
        cases.single_value(loss_fn, LOGITS, cases.batch_of(labels))

    loss, grad = _xent_and_gradient(LOGITS, labels)
    rows = _row_losses(LOGITS, LABELS[:, 0])
    np.testing.assert_allclose(loss, (rows[0] + rows[2]) / 3, rtol=1e-6)
    np.testing.assert_array_equal(grad[1], np.zeros(3))


@pytest.mark.parametrize(
    "loss_fn", [losses.XentLoss(3), losses.AccuracyErrorLoss(3)], ids=str
)
@pytest.mark.parametrize(
    ("out", "labels", "message"),
    [
        (
            LOGITS,
            LABELS[:, [0, 0]],
            r"batch.y must have shape \[batch, 1\], got \[3, 2\]",
        ),
        (LOGITS[:, :2], LABELS, r"logits must have shape .* = \[3, 3\], got \[3, 2\]"),
        (LOGITS[:1], LABELS, r"logits must have shape .* = \[3, 3\], got \[1, 3\]"),
        (LOGITS, LABELS + 1, "labels must be integers"),
    ],
)
def test_classification_losses_check_labels_and_logits(loss_fn, out, labels, message):
    with pytest.raises(ValueError, match=message):
        cases.single_value(loss_fn, out, cases.batch_of(labels))


@pytest.mark.parametrize("num_classes", [0, -1, 2.0, None])
@pytest.mark.parametrize("make_loss", [losses.XentLoss, losses.AccuracyErrorLoss])
def test_the_number_of_classes_is_a_positive_integer(make_loss, num_classes):
    message = f"num_classes must be an integer >= 1, got {num_classes}"
    with pytest.raises(ValueError, match=message):
        make_loss(num_classes)


@pytest.mark.parametrize(
    "loss_fn",
    [
        losses.XentLoss(3),
        losses.AccuracyErrorLoss(3),
        losses.xent_loss_with_custom_labels(lambda y: jax.nn.one_hot(y, 3)),
    ],
)
def test_labels_may_come_without_their_second_axis(loss_fn):
    # As the image data sets give them: [batch] against [batch, 1] must not broadcast.
    wanted = cases.single_value(loss_fn, LOGITS, cases.batch_of(LABELS))
    loss = cases.single_value(loss_fn, LOGITS, cases.batch_of(LABELS[:, 0]))
    np.testing.assert_array_equal(loss, wanted)


@pytest.mark.parametrize("num_classes", [1, 0, -2, 2.5])
def test_xent_needs_two_classes(num_classes):
    with pytest.raises(ValueError, match="num_classes must be"):
        losses.XentLoss(num_classes)


def test_custom_labels_smooth():
    def smooth(y):
        return 0.9 * jax.nn.one_hot(y, 3) + 0.1 / 3

    batch = cases.batch_of(LABELS, weights=WEIGHTS)
    loss_fn = losses.xent_loss_with_custom_labels(smooth)
    loss, (_, metrics) = loss_fn(cases.fixed_output(LOGITS), {}, {}, batch, 0)
    log_probs = scipy.special.log_softmax(LOGITS, axis=1)
    rows = 0.9 * _row_losses(LOGITS, LABELS[:, 0]) - 0.1 * np.mean(log_probs, axis=1)
    np.testing.assert_allclose(loss, np.mean(WEIGHTS[:, 0] * rows), rtol=1e-6)
    assert metrics == {"loss": loss}


def test_custom_labels_of_wrong_shape_are_rejected():
    loss_fn = losses.xent_loss_with_custom_labels(lambda y: jax.nn.one_hot(y, 2))
    with pytest.raises(ValueError, match=r"of the labels, \[3, 2\], got \[3, 3\]"):
        cases.single_value(loss_fn, LOGITS, cases.batch_of(LABELS))


def test_accuracy_counts_rows_alike():
    # The third row is a tie, which the first class wins.
    batch = cases.batch_of(np.array([[1.0], [0.0], [0.0]]), weights=WEIGHTS)
    apply = cases.fixed_output(LOGITS)
    loss, (_, metrics) = losses.AccuracyErrorLoss(3)(apply, {}, {}, batch, 0)
    np.testing.assert_allclose(loss, 1 / 3, rtol=1e-6)
    np.testing.assert_allclose(metrics["accuracy"], 2 / 3, rtol=1e-6)


@pytest.mark.parametrize(
    ("temperature", "input_dim", "factor"),
    [(None, None, 1), (4.0, 3, 6), (4.0, None, 1), (None, 3, 1), (0.0, 3, 1)],
)
def test_elbo_tempers_the_divergence_if_both_are_given(temperature, input_dim, factor):
    def log_likelihood(out, batch):
        return jnp.sum(out) + jnp.sum(batch.y)

    def kl(out, params, index):
        return params["m"]["w"] * index

    elbo = losses.ElboLoss(log_likelihood, kl, temperature, input_dim)
    params = {"m": {"w": jnp.array(2.0)}}
    loss, (state, metrics) = elbo(
        cases.fixed_output(OUT), params, {"s": 1}, cases.batch_of(Y), jnp.array(5.0)
    )
    assert loss == factor * 10 - (8 + 7)
    assert (state, metrics) == ({"s": 1}, {})


@pytest.mark.parametrize("kl", [1.0, jnp.ones([1])])
def test_elbo_needs_two_arrays_of_one_shape(kl):
    def log_likelihood(out, batch):
        return jnp.sum(out)

    def model_prior_kl(out, params, index):
        return kl

    elbo = losses.ElboLoss(log_likelihood, model_prior_kl)
    with pytest.raises(ValueError, match="must return arrays of one shape"):
        cases.single_value(elbo, OUT, cases.batch_of(Y))


def test_elbo_rejects_a_negative_temperature():
    with pytest.raises(ValueError, match="temperature must be >= 0, got -1"):
        losses.ElboLoss(None, None, temperature=-1)


def test_vae_loss_is_divergence_minus_likelihood():
    vae = losses.VaeLoss(lambda out, batch: batch.y.sum() + out, lambda out: 10 * out)
    assert cases.single_value(vae, jnp.array(3.0), cases.batch_of(Y)) == 30 - 10


def test_null_bootstrap_replaces_weights_by_ones():
    batch = cases.batch_of(Y, weights=WEIGHTS, data_index=np.arange(3)[:, None])
    loss = cases.single_value(losses.L2LossWithBootstrap(), OUT, batch)
    np.testing.assert_allclose(loss, 5 / 3, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.strict
def test_l2_with_bootstrap_is_l2_on_bootstrapped_data():
    enn, batch = cases.golden_ensemble(1), golden.batch("regression")
    boot_fn = bootstrapping.make_boot_fn(enn, "exponential", 3)
    noise = data_noise.BootstrapNoise(enn, "exponential", 3)
    got, wanted, plain = (
        cases.evaluate(losses.average_single_index_loss(single, 4), enn, batch)
        for single in (
            losses.L2LossWithBootstrap(boot_fn),
            losses.add_data_noise(losses.L2Loss(), noise),
            losses.L2Loss(),
        )
    )
    jax.tree.map(np.testing.assert_array_equal, got, wanted)
    assert not np.allclose(got["loss"], plain["loss"])


@functools.cache
def _readme_network():
    x = np.concatenate([np.linspace(0, 0.5, 10), np.linspace(1, 1.5, 10)])[:, None]
    noise = np.random.RandomState(0).randn(20, 1)
    batch = cases.batch_of(
        x + np.sin(3 * x) + np.sin(12 * x) + 0.1 * noise,
        data_index=np.arange(20)[:, None],
    ).replace(x=np.concatenate([x, np.ones([20, 1])], axis=1))
    enn = networks.MLPEnsembleMatchedPrior(
        output_sizes=[50, 50, 1], dummy_input=batch.x, num_ensemble=10
    )
    return compiled_init(enn), batch


@pytest.mark.slow
@pytest.mark.parametrize(
    ("distribution", "steps"),
    [
        (None, {1: 1.39911, 2: 1.36345, 3: 1.37743, 10: 0.95356}),
        ("exponential", {1: 1.38498, 2: 1.30685, 3: 1.25852, 10: 0.86862}),
    ],
)
def test_training_as_in_the_readme(distribution, steps):
    """The training log that the original's README example is specified to give."""
    enn, batch = _readme_network()
    loss_fn = losses.average_single_index_loss(
        losses.L2LossWithBootstrap(bootstrapping.make_boot_fn(enn, distribution)), 10
    )
    optimizer = optax.adam(1e-3)

    @jax.jit
    def step(params, opt_state, key):
        loss, grads = jax.value_and_grad(
            lambda params: loss_fn(enn, params, {}, batch, key)[0]
        )(params)
        updates, opt_state = optimizer.update(grads, opt_state)
        return optax.apply_updates(params, updates), opt_state, loss

    key, index_key = jax.random.split(golden.keys(0))
    key, init_key = jax.random.split(key)
    params, _ = enn.init(init_key, batch.x, enn.indexer(index_key))
    opt_state, log = optimizer.init(params), {}
    for count in range(1, 11):
        key, step_key = jax.random.split(key)
        params, opt_state, log[count] = step(params, opt_state, step_key)
    for count, loss in steps.items():
        np.testing.assert_allclose(log[count], loss, rtol=1e-3)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_loss_of_a_sure_network_and_its_gradient_do_not_vanish(dtype):
    # 1 - p underflowed: loss and gradient were 0 from a gap of 17 on.
    gap = 12.0
    logits = jnp.array([[gap, 0, -300], [-300, 300, -300], [0, gap, -300]], dtype)
    loss, grad = _xent_and_gradient(logits, np.array([[0], [1], [0]]))
    p = 1 / (1 + np.exp(gap))
    np.testing.assert_allclose(loss, (2 * np.log1p(np.exp(-gap)) + gap) / 3, rtol=1e-6)
    assert loss.dtype == jnp.float32
    wanted = np.array([[-p, p, 0], [0, 0, 0], [p - 1, 1 - p, 0]]) / 3
    atol = 1e-7 if dtype == "float16" else 0
    np.testing.assert_allclose(np.float64(grad), wanted, rtol=1e-2, atol=atol)


@pytest.mark.strict
def test_loss_of_a_sure_row_is_exact_to_the_last_digits():
    labels = np.array([[0], [1]])
    logits = np.float32([[40.0, 0.0, 9.0], [-np.inf, 3.0, -30.0]])
    wanted = np.mean([np.log1p(np.exp(-40) + np.exp(-31)), np.log1p(np.exp(-33))])
    grad = np.array(
        [[-np.exp(-40) - np.exp(-31), np.exp(-40), np.exp(-31)],
         [0, -np.exp(-33), np.exp(-33)]]
    ) / 2  # fmt: skip
    one_hot = losses.xent_loss_with_custom_labels(lambda y: np.eye(3)[y])
    for loss_fn in (losses.XentLoss(3), one_hot):
        run = jax.jit(
            jax.value_and_grad(
                lambda logits, loss_fn=loss_fn: cases.single_value(
                    loss_fn, logits, cases.batch_of(labels)
                )
            )
        )
        got, got_grad = run(logits)
        np.testing.assert_allclose(got, wanted, rtol=1e-5)
        np.testing.assert_allclose(got_grad, grad, rtol=1e-5)


def test_gradients_at_equal_logits_are_those_of_the_softmax():
    loss_fn = losses.xent_loss_with_custom_labels(lambda y: np.eye(3)[y])
    grad = jax.grad(
        lambda logits: cases.single_value(loss_fn, logits, cases.batch_of([[1]]))
    )(jnp.zeros([1, 3]))
    np.testing.assert_allclose(grad, [[1 / 3, -2 / 3, 1 / 3]], rtol=1e-6)


@pytest.mark.parametrize(
    "loss_fn",
    [
        losses.XentLoss(2),
        losses.AccuracyErrorLoss(2),
        losses.xent_loss_with_custom_labels(lambda y: np.eye(2)[y]),
        lambda apply, *args: losses.L2Loss()(
            lambda *inner: (apply(*inner)[0][:, :1], {}), *args
        ),
    ],
    ids=["xent", "accuracy", "custom labels", "l2"],
)
def test_integer_outputs_give_what_their_float_form_gives(loss_fn):
    # XentLoss refused them.
    logits, batch = np.array([[4, 5]], np.int32), cases.batch_of([[1]])
    got = cases.single_value(loss_fn, logits, batch)
    wanted = cases.single_value(loss_fn, logits.astype(np.float32), batch)
    assert got == wanted
    if isinstance(loss_fn, losses.XentLoss):
        np.testing.assert_allclose(got, np.log1p(np.exp(-1)), rtol=1e-6)


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_accuracy_of_nan_is_nan(transform):
    # NaN passed as class 0: 0.667 of these labels.
    def run(logits):
        batch, apply = cases.batch_of([[0], [0], [1]]), cases.fixed_output(logits)
        loss, (_, metrics) = losses.AccuracyErrorLoss(3)(apply, {}, {}, batch, 0)
        return loss, metrics["accuracy"]

    logits = LOGITS.copy()
    logits[1, 2] = np.nan
    np.testing.assert_array_equal(transform(run)(logits), [np.nan, np.nan])


def test_half_precision_errors_are_squared_and_added_in_float32():
    # 300² is infinite in float16.
    out, y = jnp.full([3000, 1], 300, jnp.float16), np.zeros([3000, 1], np.float16)
    assert cases.single_value(losses.L2Loss(), out, cases.batch_of(y)) == 9e4


def _nll(outputs, y, weights=None, min_scale=0.1):
    loss_fn = losses.GaussianNLLLoss(min_scale)
    batch = cases.batch_of(np.zeros(len(y)), weights=weights).replace(y=y)
    return cases.single_value(loss_fn, outputs, batch)


@pytest.mark.strict
def test_gaussian_likelihood_equals_scipy_for_several_outputs():
    rng = np.random.default_rng(0)
    outputs, y = rng.normal(size=(5, 4)), rng.normal(size=(5, 2))
    weights = np.arange(5.0)[:, None]
    scale = 0.1 + np.logaddexp(0, outputs[:, 2:])
    rows = -scipy.stats.norm.logpdf(y, outputs[:, :2], scale).sum(axis=1)
    got = jax.jit(_nll)(outputs, y, weights)
    np.testing.assert_allclose(got, np.mean(weights[:, 0] * rows), rtol=1e-5)
    l2 = cases.single_value(losses.L2Loss(), outputs[:, :2], cases.batch_of(y))
    np.testing.assert_allclose(l2, ((outputs[:, :2] - y) ** 2).sum() / 5, rtol=1e-5)


def test_gaussian_likelihood_of_an_exact_fit_is_bounded_by_the_floor():
    value, grad = jax.value_and_grad(_nll)(jnp.array([[2.0, -1e4]]), np.array([[2.0]]))
    np.testing.assert_allclose(value, np.log(0.1) + 0.5 * np.log(2 * np.pi), rtol=1e-5)
    assert np.isfinite(grad).all()


def test_gaussian_likelihood_checks_its_floor_and_shapes():
    with pytest.raises(ValueError, match=r"min_scale must be > 0, got 0"):
        losses.GaussianNLLLoss(0)
    with pytest.raises(ValueError, match=r"even last axis.*got shape \[3, 1\]"):
        _nll(OUT, Y)
    with pytest.raises(ValueError, match=r"num_outputs\] = \[3, 2\], got \[3, 1\]"):
        _nll(np.ones([3, 4]), Y)


@pytest.mark.parametrize(
    ("loss_fn", "out"),
    [
        (losses.L2Loss(), OUT),
        (losses.GaussianNLLLoss(), np.hstack([OUT, OUT])),
        (
            losses.ElboLoss(losses.get_awgn_loglike_fn(0.5), lambda *_: jnp.float32(0)),
            OUT,
        ),
        (
            losses.Cat2HotRegression(),
            networks.OutputWithPrior(LOGITS[:, None], OUT, {"atoms": np.arange(3.0)}),
        ),
    ],
    ids=["l2", "nll", "awgn", "2-hot"],
)
def test_targets_may_come_without_their_second_axis(loss_fn, out):
    wanted = cases.single_value(loss_fn, out, cases.batch_of(Y))
    assert cases.single_value(loss_fn, out, cases.batch_of(Y[:, 0])) == wanted
