"""One list of single-index losses through one contract."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from enn import datasets, losses, networks

NUM_OUTPUTS = 3
ATOMS = np.linspace(-1, 1, NUM_OUTPUTS, dtype=np.float32)


# Name, loss, number of outputs, whether targets are labels.
LOSSES = [
    ("l2", losses.L2Loss(), 1, False),
    ("l2 bootstrap", losses.L2LossWithBootstrap(), 1, False),
    ("gaussian nll", losses.GaussianNLLLoss(), 2, False),
    ("xent", losses.XentLoss(NUM_OUTPUTS), NUM_OUTPUTS, True),
    (
        "custom labels",
        losses.xent_loss_with_custom_labels(
            lambda y: jax.nn.one_hot(y, NUM_OUTPUTS, dtype=np.float32)
        ),
        NUM_OUTPUTS,
        True,
    ),
    ("accuracy", losses.AccuracyErrorLoss(NUM_OUTPUTS), NUM_OUTPUTS, True),
    (
        "categorical elbo",
        losses.ElboLoss(
            losses.get_categorical_loglike_fn(NUM_OUTPUTS),
            losses.get_analytical_linear_model_prior_kl_fn(10, 0.7),
            temperature=2.0,
            input_dim=2,
        ),
        NUM_OUTPUTS,
        True,
    ),
    (
        "regression elbo",
        losses.ElboLoss(
            losses.get_awgn_loglike_fn(0.5),
            losses.get_analytical_hyperflow_model_prior_kl_fn(10, 0.7),
        ),
        1,
        False,
    ),
    (
        "vae",
        losses.VaeLoss(losses.get_log_likelihood_fn(False), losses.latent_kl_fn),
        2,
        False,
    ),
    ("2-hot", losses.Cat2HotRegression(), NUM_OUTPUTS, False),
]


def _network(name, num_outputs):
    def apply(params, state, inputs, index):
        out = inputs @ params["net"]["w"] + params["net"]["b"][None] * (1 + index)
        extra = {
            "atoms": ATOMS,
            "latent": params,
            "log_prob": out[0, 0],
            "latent_mean": out,
            "latent_log_var": out,
            "out_mean": out,
            "out_log_var": out,
        }
        if name == "2-hot":
            return networks.OutputWithPrior(out[:, None], out[:, :1], extra), state
        return networks.OutputWithPrior(out, jnp.ones_like(out), extra), state

    def init(key, inputs, index):
        w = 0.1 + np.arange(2 * num_outputs, dtype=np.float32).reshape(2, num_outputs)
        return {"net": {"w": w, "b": np.ones(num_outputs, np.float32)}}, {}

    return networks.EnnArray(apply, init, networks.EnsembleIndexer(4))


def _batch(is_label):
    x = np.random.RandomState(0).randn(5, 2).astype(np.float32)
    y = np.arange(5)[:, None] % NUM_OUTPUTS
    return datasets.ArrayBatch(
        x=x,
        y=y if is_label else 0.3 * y.astype(np.float32),
        data_index=np.arange(5)[:, None],
        weights=np.arange(5, dtype=np.float32)[:, None],
    )


@pytest.mark.slow
@pytest.mark.strict
@pytest.mark.parametrize(
    ("name", "single_loss", "num_outputs", "is_label"),
    LOSSES,
    ids=[name for name, *_ in LOSSES],
)
def test_averages_differentiates_and_keeps_float32(
    name, single_loss, num_outputs, is_label
):
    enn, batch = _network(name, num_outputs), _batch(is_label)
    params, state = enn.init(None, batch.x, 0)
    loss_fn = losses.average_single_index_loss(single_loss, 3)

    @jax.jit
    def step(params, batch, key):
        def loss_of(params):
            return loss_fn(enn, params, state, batch, key)

        return jax.jit(jax.value_and_grad(loss_of, has_aux=True))(params)

    (loss, (new_state, metrics)), grad = step(params, batch, jax.random.PRNGKey(2))

    @jax.jit
    def single(params, batch, key):
        return single_loss(enn.apply, params, state, batch, enn.indexer(key))[0]

    single_values = [
        single(params, batch, jax.random.fold_in(jax.random.PRNGKey(2), s))
        for s in range(3)
    ]
    np.testing.assert_allclose(loss, np.mean(single_values), rtol=1e-5)
    assert new_state == {}
    for leaf in jax.tree.leaves((loss, metrics, grad)):
        assert np.isfinite(leaf).all()
        assert leaf.dtype == np.float32
    if name != "accuracy":
        assert np.abs(grad["net"]["w"]).max() > 1e-3
