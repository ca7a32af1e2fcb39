"""MultiSWAG: SWAG of several runs, each of whose samples is one index."""

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax

from enn import losses, metrics, networks, posteriors, supervised


def run(num_runs: int = 4, num_steps: int = 300) -> list[float]:
    """Returns the test NLL of the last weights of a run, of SWAG and of MultiSWAG."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=[1000, 5]).astype(np.float32)
    y = (np.sin(2 * x[:, :1]) + x[:, 1:2] + rng.normal(size=[1000, 1]) > 0).astype(int)
    enn = networks.wrap_net_fn_as_enn(lambda x: hk.nets.MLP([50, 2])(x))
    loss = losses.average_single_index_loss(losses.XentLoss(2))
    optimizer = posteriors.track_moments(
        optax.sgd(0.1, momentum=0.9), every=3, burn_in=num_steps // 2
    )
    runs, trained = [], []
    for seed in range(num_runs):
        data = (x[:200], y[:200])
        experiment = supervised.Experiment(
            enn, loss, optimizer, data, seed, train_log_freq=None
        )
        experiment.train(num_steps)
        trained.append(experiment.state.params)
        moments = posteriors.get_moments(experiment.state.opt_state)
        runs.append(posteriors.draw_swag_samples(moments, jax.random.key(seed)))

    def nll(samples: dict, num_samples: int) -> float:
        posterior = networks.from_network_samples(enn, samples)
        z = np.arange(num_samples)
        logits = networks.predict_at_indices(posterior, samples, {}, x[200:], z)
        return float(metrics.make_nll_marginal_calculator()(logits, y[200:]))

    last = jax.tree.map(lambda leaf: leaf[None], trained[-1])
    together = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *runs)
    return [nll(last, 1), nll(runs[-1], 30), nll(together, 30 * num_runs)]


if __name__ == "__main__":
    names = ("last weights", "SWAG", "MultiSWAG")
    for name, value in zip(names, run(), strict=True):
        print(f"test NLL of {name}: {value:.3f}")
