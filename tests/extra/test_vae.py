import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special

from enn import extra, losses, networks
from enn.extra import vae
from enn.loggers import MemoryLogger
from tests.support import golden

DATA = np.asarray(jax.random.bernoulli(jax.random.PRNGKey(0), 0.5, [16, 3]), np.float32)


def _config(**kwargs):
    settings = {"hidden_sizes": [5, 2], "num_batches": 20, "batch_size": 16}
    return extra.MLPVAEConfig(**settings | kwargs)


def _train(data=DATA, seed=0, logger=None, **kwargs):
    return extra.get_mlp_vae_encoder_decoder(
        data, _config(**kwargs), seed, logger or MemoryLogger()
    )


def _pair(out):
    return vae.MeanLogVariance(*jnp.split(out, 2, axis=-1))


def _linear_encoder(inputs):
    return _pair(hk.Linear(2 * 2)(inputs))


def _linear_decoder(latents):
    return _pair(hk.Linear(2 * 3)(latents))


def _forward(noise_per_row, batch, key):
    enn = vae.make_vae_enn(_linear_encoder, _linear_decoder, 2, noise_per_row)
    index = enn.indexer(key)

    @jax.jit
    def run(init_key, batch, index):
        params, state = enn.init(init_key, batch, index)
        return params, enn.apply(params, state, batch, index)[0]

    params, out = run(golden.keys(0), batch, index)
    return enn, params, index, out


@pytest.fixture(scope="module")
def trained():
    logger = MemoryLogger()
    return _train(logger=logger), logger


def test_documented_values(trained):
    encoder, decoder = trained[0]
    mean, log_var = encoder(DATA)
    np.testing.assert_allclose(np.asarray(mean)[0], [-0.36849, -0.34004], atol=1e-3)
    np.testing.assert_allclose(np.asarray(log_var)[0], [0.53062, -0.02067], atol=1e-3)
    decoded = decoder(np.zeros([1, 2], np.float32))
    np.testing.assert_allclose(decoded.mean, [[-0.02797, -0.05672, 0.04748]], 0, 1e-3)
    np.testing.assert_array_equal(decoded.log_var, np.zeros([1, 3]))


def test_defaults():
    config = extra.MLPVAEConfig()
    assert config.hidden_sizes == (256, 64)
    assert (config.latent_dim, config.activation) == (2, jax.nn.tanh)
    assert (config.bernoulli_decoder, config.noise_per_row) == (True, False)
    assert (config.num_batches, config.batch_size) == (10_000, 1_000)
    assert config.learning_rate == 1e-3


@pytest.mark.slow
def test_about_a_hundred_rows_are_logged(trained):
    assert [row["step"] for row in trained[1].rows] == list(range(1, 21))
    logger = MemoryLogger()
    _train(logger=logger, num_batches=250)
    assert [row["step"] for row in logger.rows] == list(range(2, 251, 2))


@pytest.mark.slow
def test_same_seed_same_network_and_other_seed_another(trained):
    # There was no seed.
    encoder, _ = trained[0]
    # Integers train as the floats that they equal.
    same = _train(np.asarray(DATA, int)).encoder
    np.testing.assert_array_equal(same(DATA)[0], encoder(DATA)[0])
    assert not np.allclose(_train(seed=1).encoder(DATA)[0], encoder(DATA)[0])


def test_parameters_have_their_names(monkeypatch):
    functions = []
    monkeypatch.setattr(vae, "train_vae", lambda *args: functions.extend(args[:2]))
    _train(bernoulli_decoder=False)
    shapes = {}
    for function, dim in zip(functions, (3, 2), strict=True):
        init = hk.transform(function).init
        params = jax.eval_shape(init, golden.keys(0), np.ones([1, dim]))
        shapes |= {name: module["w"].shape for name, module in params.items()}
    assert shapes == {
        "encoder": (3, 5),
        "encoder_1": (5, 2),
        "encoder_mean": (2, 2),
        "encoder_log_var": (2, 2),
        "decoder": (2, 2),
        "decoder_1": (2, 5),
        "decoder_mean": (5, 3),
        "decoder_log_var": (5, 3),
    }


@pytest.mark.parametrize(
    ("bernoulli_decoder", "noise_per_row"), [(True, False), (False, True)]
)
@pytest.mark.slow
def test_learns_to_reconstruct(bernoulli_decoder, noise_per_row):
    # Two clusters: a latent that tells them apart reconstructs the data.
    means = np.repeat([[0.0, 1.0, 1.0, 0.0], [1.0, 0.0, 0.0, 1.0]], 8, axis=0)
    noise = 0.2 * np.random.default_rng(0).normal(size=means.shape)
    x = means if bernoulli_decoder else means + noise
    logger = MemoryLogger()
    encoder, decoder = _train(
        x,
        logger=logger,
        hidden_sizes=[8],
        latent_dim=1,
        num_batches=300,
        learning_rate=2e-2,
        bernoulli_decoder=bernoulli_decoder,
        noise_per_row=noise_per_row,
    )
    mean, log_var = decoder(encoder(x).mean)
    decoded = scipy.special.expit(mean) if bernoulli_decoder else mean
    np.testing.assert_allclose(decoded, means, atol=0.4)
    assert np.all(np.asarray(log_var) == 0) == bernoulli_decoder
    assert logger.rows[-1]["loss"] < logger.rows[0]["loss"] - 1


def test_latents_are_shifted_by_scaled_noise():
    batch = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    enn, params, z, out = _forward(False, batch, golden.keys(2))
    assert isinstance(enn.indexer, networks.GaussianIndexer)
    params, z, out = jax.tree.map(np.asarray, (params, z, out))
    mean, log_var = out.extra["latent_mean"], out.extra["latent_log_var"]
    encoded = batch @ params["linear"]["w"]
    np.testing.assert_allclose(np.hstack([mean, log_var]), encoded, atol=1e-5)
    latents = mean + np.exp(log_var / 2) * z
    decoded = latents @ params["linear_1"]["w"]
    got = np.hstack([out.extra["out_mean"], out.extra["out_log_var"]])
    np.testing.assert_allclose(got, decoded, atol=1e-5)
    np.testing.assert_array_equal(out.preds, out.extra["out_mean"])


@pytest.mark.strict
@pytest.mark.parametrize("make_key", [jax.random.key, jax.random.PRNGKey])
def test_noise_is_shared_by_the_rows_or_each_row_has_its_own(make_key):
    # Rows that are equal tell their noise by their outputs.
    batch = np.ones([400, 3])
    shared = np.asarray(_forward(False, batch, make_key(0))[-1].train)
    np.testing.assert_allclose(shared, np.tile(shared[:1], [400, 1]), rtol=1e-6)
    enn, params, _, out = _forward(True, batch, make_key(0))
    params, out = jax.tree.map(np.asarray, (params, out))
    assert isinstance(enn.indexer, networks.PrngIndexer)
    scale = np.exp(out.extra["latent_log_var"] / 2)
    # The decoder is linear: its input is known from its output.
    latents = out.preds @ np.linalg.pinv(params["linear_1"]["w"][:, :3])
    noise = (latents - out.extra["latent_mean"]) / scale
    np.testing.assert_allclose(noise.mean(axis=0), [0, 0], atol=0.2)
    np.testing.assert_allclose(np.cov(noise.T), np.eye(2), atol=0.3)


@pytest.mark.slow
@pytest.mark.strict
@pytest.mark.parametrize("noise_per_row", [False, True])
def test_many_indices_give_predictions_for_each(noise_per_row):
    # The omitted prior did not broadcast over indices.
    enn, params, _, out = _forward(noise_per_row, np.ones([5, 3]), golden.keys(0))
    forward = networks.make_batch_fwd(enn, num_enn_samples=7)
    preds = forward(params, {}, np.ones([5, 3]))
    assert preds.shape == (7, 5, 3)
    assert out.preds.shape == (5, 3)
    assert np.ptp(preds, axis=0).min() > 0


def _train_functions(encoder, latent_dim=2, data=DATA, num_batches=2):
    return vae.train_vae(
        encoder,
        _linear_decoder,
        latent_dim,
        data,
        losses.get_log_likelihood_fn(True),
        optax.sgd(0.0),
        num_batches,
        batch_size=16,
        logger=MemoryLogger(),
    )


@pytest.mark.slow
def test_encoder_and_decoder_with_modules_of_one_name_stay_apart():
    encoder, decoder = _train_functions(_linear_encoder)
    enn = vae.make_vae_enn(_linear_encoder, _linear_decoder, 2)
    rng = hk.PRNGSequence(0)
    index = enn.indexer(next(rng))
    params, _ = enn.init(next(rng), DATA, index)
    latents = np.random.default_rng(0).normal(size=(4, 2)).astype(np.float32)
    for function, inputs, name in [
        (encoder, DATA, "linear"),
        (decoder, latents, "linear_1"),
    ]:
        got = np.hstack(function(inputs))
        wanted = inputs @ np.asarray(params[name]["w"])
        np.testing.assert_allclose(got, wanted, atol=1e-5)


@pytest.mark.slow
def test_network_state_is_that_after_training():
    def encoder(inputs):
        steps = hk.get_state("steps", [], init=jnp.zeros)
        hk.set_state("steps", steps + 1)
        mean = jnp.full([len(inputs), 2], steps)
        return vae.MeanLogVariance(mean, jnp.zeros_like(mean))

    trained = _train_functions(encoder, num_batches=3)
    np.testing.assert_array_equal(trained.encoder(DATA).mean, np.full([16, 2], 3))


@pytest.mark.parametrize(
    ("latent_dim", "dim", "message"),
    [
        (3, 3, r"mean of the encoder must have shape \[16, 3\], got \[16, 2\]"),
        (2, 4, r"mean of the decoder must have shape \[16, 4\], got \[16, 3\]"),
        (0, 3, "latent_dim must be an integer >= 1"),
    ],
)
def test_wrong_shapes_of_encoder_and_decoder_are_errors(latent_dim, dim, message):
    with pytest.raises(ValueError, match=message):
        _train_functions(_linear_encoder, latent_dim, np.ones([16, dim]))


@pytest.mark.parametrize(
    ("data", "kwargs", "message"),
    [
        (np.ones([4, 2, 2]), {}, r"data_x must have shape \[num_data, dim\]"),
        (np.ones([0, 2]), {}, "data_x must have at least one row"),
        (DATA, {"hidden_sizes": [4, 0]}, "hidden_sizes must be an integer >= 1"),
        (DATA, {"latent_dim": 0}, "latent_dim must be an integer >= 1"),
        (DATA, {"num_batches": -1}, "num_batches must be an integer >= 0, got -1"),
        # Blamed train_log_freq, which the caller does not know.
        (DATA, {"num_batches": 1e3}, "num_batches must be an integer >= 0, got 1000.0"),
    ],
)
def test_wrong_arguments_are_errors(data, kwargs, message):
    with pytest.raises(ValueError, match=message):
        _train(data, **kwargs)
