"""An epinet on a trained Equinox model: it learns where the model does not know."""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from sklearn import datasets as sk_datasets

from enn import losses, metrics, networks, supervised


def run(num_steps: int = 500) -> list[float]:
    """Returns the joint loss on new digits of the model, and with the epinet."""
    x, y = map(jnp.asarray, sk_datasets.load_digits(return_X_y=True))
    x = x / 16
    model = eqx.nn.MLP(64, 10, width_size=50, depth=1, key=jax.random.key(0))

    def model_loss(model: eqx.nn.MLP) -> jax.Array:
        logits = jax.vmap(model)(x[:300])
        return optax.softmax_cross_entropy_with_integer_labels(logits, y[:300]).mean()

    step = eqx.filter_jit(eqx.filter_grad(model_loss))
    for _ in range(num_steps):
        updates = jax.tree.map(lambda g: -0.5 * g, step(model))
        model = eqx.apply_updates(model, updates)
    enn = networks.epinet.add_epinet(model, features="layers/1", num_outputs=10)
    loss = losses.average_single_index_loss(losses.XentLoss(10), 8)
    experiment = supervised.Experiment(
        enn, loss, optax.adam(1e-2), (x[:300], y[:300]), train_log_freq=None
    )
    experiment.train(num_steps)
    logits = networks.make_batch_fwd(enn, 100)(experiment.state.params, {}, x[300:])
    joint_nll = metrics.make_nll_polyadic_calculator(10, 2)
    alone = jax.vmap(model)(x[300:])[None]
    return [float(joint_nll(out, y[300:, None])) for out in (alone, logits)]


if __name__ == "__main__":
    print("joint loss of the model {:.2f}, with an epinet {:.2f}".format(*run()))
