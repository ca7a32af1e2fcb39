"""An epinet on a trained Haiku model: it learns where the model does not know."""

import haiku as hk
import jax
import jax.numpy as jnp
import optax
from sklearn import datasets as sk_datasets

from enn import losses, metrics, networks, supervised


def run(num_steps: int = 500) -> list[float]:
    """Returns the joint loss on new digits of the model, and with the epinet."""
    x, y = map(jnp.asarray, sk_datasets.load_digits(return_X_y=True))
    x = x / 16
    model = hk.transform(lambda x: hk.nets.MLP([50, 10])(x))

    def model_loss(params: hk.Params) -> jax.Array:
        logits = model.apply(params, None, x[:300])
        return optax.softmax_cross_entropy_with_integer_labels(logits, y[:300]).mean()

    params, step = model.init(jax.random.key(0), x), jax.jit(jax.grad(model_loss))
    for _ in range(num_steps):
        params = jax.tree.map(lambda p, g: p - 0.5 * g, params, step(params))
    enn = networks.epinet.add_epinet(
        hk.without_apply_rng(model), params, features="mlp/~/linear_1", num_outputs=10
    )
    loss = losses.average_single_index_loss(losses.XentLoss(10), 8)
    experiment = supervised.Experiment(
        enn, loss, optax.adam(1e-2), (x[:300], y[:300]), train_log_freq=None
    )
    experiment.train(num_steps)
    logits = networks.make_batch_fwd(enn, 100)(experiment.state.params, {}, x[300:])
    joint_nll = metrics.make_nll_polyadic_calculator(10, 2)
    alone = model.apply(params, None, x[None, 300:])
    return [float(joint_nll(out, y[300:, None])) for out in (alone, logits)]


if __name__ == "__main__":
    print("joint loss of the model {:.2f}, with an epinet {:.2f}".format(*run()))
