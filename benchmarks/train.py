"""Training speed beside hand-written loops over the same model, in the same run.

    python benchmarks/train.py [--repeats 7] [--processor] [regression digits ...]

With `--processor` loops are timed by the processor, whose time other work on the
machine changes less than that on the clock. Without a choice of parts all of them run.

- `scan`: a hand-written `jax.lax.scan` over all steps, on batches that already lie on
  the device. It gathers the parameters of the member that each index picks.
- `scan, all members`: the same, but every member runs once a step and outputs are
  picked: the fastest way to write it where indices are as many as members.
- `step at a time`: one dispatch a step, priors chosen by `jax.lax.switch`.

Then a step of an ensemble of LeNets by its size, in which it is linear, and a sweep of
fifty small experiments over seeds, which share their network, loss and optimiser and so
compile once, beside experiments that each make their own.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
from _timing import median_seconds
from sklearn import datasets as sk_datasets

from enn import datasets, losses, networks, supervised, utils
from enn.loggers import MemoryLogger

OPTIMIZER = optax.adam(1e-3)


def mlp(params: list[Any], x: jax.Array) -> jax.Array:
    for i, (w, b) in enumerate(params):
        x = x @ w + b
        if i < len(params) - 1:
            x = jax.nn.relu(x)
    return x


def init(key: jax.Array, sizes: list[int], num_ensemble: int) -> list[Any]:
    keys = jax.random.split(key, len(sizes) - 1)
    return [
        (
            jax.random.truncated_normal(k, -2, 2, (num_ensemble, m, n)) / m**0.5,
            jnp.zeros((num_ensemble, 1, n)),
        )
        for k, m, n in zip(keys, sizes, sizes[1:], strict=False)
    ]


def select(tree: Any, z: jax.Array) -> Any:
    return jax.tree.map(lambda leaf: leaf[z], tree)


def forward_gather(params: Any, prior: Any, x: jax.Array, zs: jax.Array) -> jax.Array:
    def one(z: jax.Array) -> jax.Array:
        return mlp(select(params, z), x) + mlp(select(prior, z), x)

    return jax.vmap(one)(zs)


def forward_all(params: Any, prior: Any, x: jax.Array, zs: jax.Array) -> jax.Array:
    members = jax.vmap(mlp, (0, None))
    return (members(params, x) + members(prior, x))[zs]


def forward_switch(params: Any, prior: Any, x: jax.Array, zs: jax.Array) -> jax.Array:
    num_ensemble = len(prior[0][0])
    branches = [lambda x, k=k: mlp(select(prior, k), x) for k in range(num_ensemble)]

    def one(z: jax.Array) -> jax.Array:
        return mlp(select(params, z), x) + jax.lax.switch(z, branches, x)

    return jax.vmap(one)(zs)


def make_update(
    forward: Callable[..., jax.Array],
    prior: Any,
    single_loss: Callable[[jax.Array, jax.Array], jax.Array],
    num_index_samples: int,
    num_ensemble: int,
) -> Callable[..., Any]:
    def loss_fn(params: Any, batch: Any, key: jax.Array) -> jax.Array:
        keys = jax.vmap(jax.random.fold_in, (None, 0))(
            key, jnp.arange(num_index_samples)
        )
        zs = jax.vmap(lambda k: jax.random.randint(k, (), 0, num_ensemble))(keys)
        outs = forward(params, prior, batch[0], zs)
        return jnp.mean(jax.vmap(single_loss, (0, None))(outs, batch[1]))

    def update(carry: Any, batch: Any) -> Any:
        params, opt_state, key = carry
        key, subkey = jax.random.split(key)
        loss, grads = jax.value_and_grad(loss_fn)(params, batch, subkey)
        updates, opt_state = OPTIMIZER.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state, key), loss

    return update


def l2(out: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.mean(jnp.square(out - y))


def xent(out: jax.Array, y: jax.Array) -> jax.Array:
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(out), y, axis=1))


def regression() -> dict[str, Any]:
    from enn.supervised import regression_data

    return {
        "name": "README example: 10 members [50, 50, 1], 10 index samples, 20 rows",
        "data": regression_data.make_dataset().data,
        "sizes": [50, 50, 1],
        "samples": 10,
        "members": 10,
        "batch_size": 20,
        "single_loss": losses.L2Loss(),
        "plain_loss": l2,
        "steps": 1000,
    }


def digits() -> dict[str, Any]:
    digits = sk_datasets.load_digits()
    return {
        "name": "digits: 30 members [100, 100, 10], 30 index samples, batch 128",
        "data": datasets.ArrayBatch(
            x=(digits.data / 16).astype(np.float32), y=digits.target
        ),
        "sizes": [100, 100, 10],
        "samples": 30,
        "members": 30,
        "batch_size": 128,
        "single_loss": losses.XentLoss(10),
        "plain_loss": xent,
        "steps": 200,
    }


def compare(
    case: dict[str, Any], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> None:
    steps = case["steps"]

    def batches() -> Any:
        return utils.make_batch_iterator(case["data"], case["batch_size"])

    enn = networks.MLPEnsembleMatchedPrior(case["sizes"], num_ensemble=case["members"])
    loss_fn = losses.average_single_index_loss(case["single_loss"], case["samples"])
    first_steps = []
    for seed in range(2):
        started = time.perf_counter()
        experiment = supervised.Experiment(
            enn, loss_fn, OPTIMIZER, batches(), seed, MemoryLogger()
        )
        experiment.train(1)
        first_steps.append(time.perf_counter() - started)
    experiment.train(3 * steps)  # Settle how many steps go into a dispatch.

    stacked = batches().take(steps)
    stacked = jax.device_put(
        (jnp.asarray(stacked.x, jnp.float32), jnp.asarray(stacked.y))
    )
    if case["plain_loss"] is l2:
        stacked = (stacked[0], stacked[1].astype(jnp.float32))
    sizes = [stacked[0].shape[-1], *case["sizes"]]
    prior = init(jax.random.key(1), sizes, case["members"])
    params = init(jax.random.key(0), sizes, case["members"])
    carry = (params, OPTIMIZER.init(params), jax.random.key(2))

    def update(forward: Callable[..., jax.Array]) -> Callable[..., Any]:
        return make_update(
            forward, prior, case["plain_loss"], case["samples"], case["members"]
        )

    def scan(forward: Callable[..., jax.Array]) -> Callable[[], Any]:
        run = jax.jit(lambda carry: jax.lax.scan(update(forward), carry, stacked))
        return lambda: jax.block_until_ready(run(carry))

    step = jax.jit(update(forward_switch))
    few = max(steps // 10, 10)

    def step_at_a_time() -> None:
        state, iterator = carry, batches()
        for _ in range(few):
            batch = next(iterator)
            state, loss = step(state, (batch.x.astype(np.float32), batch.y))
            float(loss)

    seconds = median_seconds(
        {
            "enn": lambda: experiment.train(steps),
            "scan": scan(forward_gather),
            "scan, all members": scan(forward_all),
            "step at a time": step_at_a_time,
        },
        repeats,
        clock,
    )
    seconds["step at a time"] *= steps / few
    print(f"\n{case['name']}, {steps} steps, median of {repeats}")
    print(f"{'loop':20} {'steps/s':>10} {'enn is':>9}")
    for name, value in seconds.items():
        print(f"{name:20} {steps / value:10.0f} {value / seconds['enn']:8.2f}x")
    first, second = first_steps
    print(
        f"an experiment and its first step: {first:.2f} s, the second: {second:.3f} s"
    )


def sweep(num_experiments: int = 50, num_alone: int = 5) -> None:
    """Times experiments of 100 steps on 100 rows, over seeds."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(100, 3)), rng.normal(size=(100, 1))
    data = datasets.ArrayBatch(x=x, y=y)

    def make_parts() -> Any:
        enn = networks.MLPEnsembleMatchedPrior([50, 50, 1], num_ensemble=10)
        loss_fn = losses.average_single_index_loss(losses.L2Loss(), 10)
        return enn, loss_fn, optax.adam(1e-3)

    def run(seed: int, parts: Any) -> None:
        dataset = utils.make_batch_iterator(data, 50, seed)
        logger = MemoryLogger()
        supervised.Experiment(*parts, dataset, seed, logger).train(100)

    run(0, make_parts())  # Compiles what all experiments share in any case.
    started = time.perf_counter()
    for seed in range(num_alone):
        run(seed, make_parts())
    alone = (time.perf_counter() - started) / num_alone * num_experiments
    started = time.perf_counter()
    parts = make_parts()
    for seed in range(num_experiments):
        run(seed, parts)
    shared = time.perf_counter() - started
    print(
        f"\nsweep of {num_experiments}, with shared objects: {shared:.1f} s, "
        f"with their own ({num_alone} timed): {alone:.1f} s, {alone / shared:.0f}x"
    )


def convolutions(repeats: int, sizes: tuple[int, ...] = (1, 4, 10)) -> None:
    """Times a step of K LeNets at K indices, batch 32 of 28x28 images."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(32, 28, 28, 1)).astype(np.float32)
    batch = datasets.ArrayBatch(x=x, y=rng.integers(10, size=32))

    def step(num_ensemble: int) -> Callable[[], Any]:
        enn = networks.EnsembleLeNet5ENN(10, num_ensemble)
        loss_fn = losses.average_single_index_loss(losses.XentLoss(10), num_ensemble)

        def loss(params: Any, state: Any) -> Any:
            return loss_fn(enn, params, state, batch, jax.random.key(1))[0]

        variables = jax.jit(enn.init)(jax.random.key(0), x, 0)
        grad = jax.jit(jax.grad(loss))
        return lambda: jax.block_until_ready(grad(*variables))

    seconds = median_seconds({str(size): step(size) for size in sizes}, repeats)
    print(f"\nLeNets: a step of K members, median of {repeats}")
    print(f"{'K':>3} {'ms':>10} {'over K x one':>13}")
    for name, value in seconds.items():
        ratio = value / (int(name) * seconds["1"])
        print(f"{name:>3} {1000 * value:10.1f} {ratio:12.2f}x")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--processor", action="store_true")
    parts = ["regression", "digits", "convolutions", "sweep"]
    parser.add_argument("parts", nargs="*", help=f"some of {parts}; all by default")
    args = parser.parse_args()
    chosen = args.parts or parts
    clock = time.process_time if args.processor else time.perf_counter
    print(f"jax {jax.__version__}, haiku {hk.__version__}, {jax.devices()}")
    if "regression" in chosen:
        compare(regression(), args.repeats, clock)
    if "digits" in chosen:
        compare(digits(), args.repeats, clock)
    if "convolutions" in chosen:
        convolutions(args.repeats)
    if "sweep" in chosen:
        sweep()


if __name__ == "__main__":
    main()
