"""Thompson sampling: act on one sample of what an ensemble believes, learn, repeat."""

import jax
import numpy as np
import optax

from enn import losses, networks, supervised


def run(num_steps: int = 300, num_actions: int = 20, seed: int = 0) -> np.ndarray:
    """Returns the regret of every step, against the action that is best on average."""
    rng = np.random.default_rng(seed)
    actions = rng.normal(size=(num_actions, 5)).astype(np.float32)
    rewards = np.tanh(actions @ rng.normal(size=5))

    def pull(action: int) -> None:
        reward = rewards[action] + 0.1 * rng.normal()
        replay.add(actions[[action]], np.array([reward], np.float32))

    replay = supervised.Replay(capacity=1000, batch_size=32, seed=seed)
    pull(0)
    enn = networks.MLPEnsembleMatchedPrior([32, 1], actions, 10, prior_scale=1.0)
    loss = losses.average_single_index_loss(losses.L2Loss(), num_index_samples=10)
    experiment = supervised.Experiment(
        enn, loss, optax.adam(1e-2), replay, seed, train_log_freq=None
    )
    regrets = []
    for key in jax.random.split(jax.random.key(seed), num_steps):
        output = experiment.predict(actions, key)  # At one index: one member.
        action = int(np.argmax(networks.parse_net_output(output)))
        regrets.append(rewards.max() - rewards[action])
        pull(action)
        experiment.train(10)
    return np.array(regrets)


if __name__ == "__main__":
    for step, regret in enumerate(np.split(run(), 10)):
        print(f"steps {30 * step} to {30 * step + 29}: mean regret {regret.mean():.3f}")
