"""SWAG by a callback; `enn.posteriors` has one that also resumes."""

import haiku as hk
import jax
import numpy as np
import optax

from enn import losses, metrics, networks, supervised


def run(num_steps: int = 300, every: int = 3) -> list[float]:
    """Returns the test NLL of the last weights, and that of SWAG, in nats."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=[1000, 5]).astype(np.float32)
    y = (np.sin(2 * x[:, :1]) + x[:, 1:2] + rng.normal(size=[1000, 1]) > 0).astype(int)
    enn = networks.wrap_net_fn_as_enn(lambda x: hk.nets.MLP([50, 2])(x))
    loss, kept = losses.average_single_index_loss(losses.XentLoss(2)), []
    opt = optax.sgd(0.1, momentum=0.9)
    supervised.Experiment(
        enn, loss, opt, (x[:200], y[:200]), train_log_freq=None,
        callback=lambda s, step: kept.append(s.params), callback_every=every,
    ).train(num_steps)  # fmt: skip
    late = jax.tree.map(lambda *leaves: np.stack(leaves), *kept[len(kept) // 2 :])
    weights = rng.normal(size=[30, len(kept) - len(kept) // 2])  # Shared by all leaves.

    def draw(leaf: np.ndarray) -> np.ndarray:
        mean, noise = leaf.mean(0), rng.normal(size=[30, *leaf.shape[1:]])
        low_rank = np.tensordot(weights, leaf - mean, 1) / np.sqrt(len(leaf) - 1)
        return mean + np.sqrt(0.5) * (leaf.std(0) * noise + low_rank)

    nlls, last = [], jax.tree.map(lambda leaf: leaf[-1:], late)
    for samples, number in ((last, 1), (jax.tree.map(draw, late), 30)):
        swag, z = networks.from_network_samples(enn, samples), np.arange(number)
        logits = networks.predict_at_indices(swag, samples, {}, x[200:], z)
        nlls.append(float(metrics.make_nll_marginal_calculator()(logits, y[200:])))
    return nlls


if __name__ == "__main__":
    print("test NLL of the last weights {:.3f}, of SWAG {:.3f}".format(*run()))
