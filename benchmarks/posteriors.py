"""What posteriors cost, each beside the plain way in the same run.

    python benchmarks/posteriors.py [--repeats 7] [--only sghmc]

- resnet: 1000 indices of a last layer's posterior on a ResNet-18 and 64 images of
  CIFAR's size, beside the forward pass of the ResNet alone.
- linearised: 200 indices of a linearised Laplace approximation, beside a loop over them
  that runs the network again for each.
- sghmc: a step of SGHMC beside one of Adam: of training, and the update alone; and with
  the noise drawn by `jax.random.normal`.
- fit: a Laplace approximation of the last layer, beside one forward pass over the same
  rows in the same batches; and of the first batch alone, which is mostly compilation.

Ratios are medians of runs that take turns; operations are counted by XLA.
"""

import argparse
import functools
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
from _timing import median_seconds

from enn import losses, networks, posteriors
from enn.datasets import ArrayBatch
from enn.networks import forwarders
from enn.posteriors import sgmcmc

Runs = dict[str, Callable[[], object]]


def compiled(function: Callable[..., Any], *args: Any) -> tuple[Any, float]:
    """Returns a function of nothing that waits for its result, and its operations."""
    program = jax.jit(function).lower(*args).compile()
    flops = program.cost_analysis()["flops"]
    return lambda: jax.block_until_ready(program(*args)), flops


def report(title: str, runs: Runs, repeats: int) -> None:
    """Prints times, and their ratios to that of the first of `runs`."""
    seconds = median_seconds(runs, repeats)
    first = seconds[next(iter(runs))]
    print(title)
    for name, time in seconds.items():
        print(f"  {name:44} {1e3 * time:10.3f} ms  {time / first:6.2f}", flush=True)


def indices_of(enn: Any, num_indices: int) -> jax.Array:
    keys = jax.random.split(jax.random.key(1), num_indices)
    return jax.vmap(enn.indexer)(keys)


def resnet(repeats: int) -> None:
    config = networks.CanonicalResNets.RESNET_18.value
    base = networks.EnsembleResNetENN(10, is_training=False, config=config)
    draw = np.random.default_rng(0)
    images = jnp.asarray(draw.normal(size=(64, 32, 32, 3)), jnp.float32)
    params, state = jax.jit(base.init)(jax.random.key(0), images, 0)

    def forward(params: Any, state: Any, images: Any) -> Any:
        return networks.parse_net_output(base.apply(params, state, images, 0)[0])

    runs: Runs = {}
    runs["forward pass of the ResNet"], flops = compiled(forward, params, state, images)
    operations = {}
    data = ArrayBatch(x=images[:8], y=np.arange(8)[:, None] % 10)
    hidden = base.apply(params, state, images[:1], 0)[0].extra["final_out"]
    print("features of the ResNet:", hidden.shape[-1])
    for structure in ("diagonal", "per_output", "joint", "kronecker"):
        posterior = posteriors.fit_laplace(
            base,
            params,
            state,
            data,
            "categorical",
            structure=structure,
            parse_hidden=lambda out: out.extra["final_out"],
            bias=False,
        )

        def many(params: Any, state: Any, images: Any, zs: Any, enn: Any) -> Any:
            return forwarders.predict_at_indices(enn, params, state, images, zs)

        name = f"with 1000 indices, {structure}"
        runs[name], operations[name] = compiled(
            functools.partial(many, enn=posterior.enn),
            posterior.params,
            posterior.state,
            images,
            indices_of(posterior.enn, 1000),
        )
    report("ResNet-18, 64 images of 32 × 32, 10 classes", runs, repeats)
    for name, count in operations.items():
        print(f"  {name:44} {count / flops:10.3f} times its operations")


def linearised(repeats: int) -> None:
    draw = np.random.default_rng(0)
    for sizes, rows in (([50, 50, 2], 64), ([512, 512, 10], 64)):
        enn = networks.wrap_net_fn_as_enn(lambda x: hk.nets.MLP(sizes)(x))  # noqa: B023
        x = jnp.asarray(draw.normal(size=(rows, 7)), jnp.float32)
        params, state = jax.jit(enn.init)(jax.random.key(0), x, jax.random.key(0))
        data = ArrayBatch(x=x, y=np.arange(rows)[:, None] % sizes[-1])
        posterior = posteriors.fit_linearised_laplace(
            enn, params, state, data, "categorical", structure="diagonal"
        )
        zs = indices_of(posterior.enn, 200)

        def plain(params: Any, x: Any, zs: Any, enn: Any) -> Any:
            def one(z: jax.Array) -> jax.Array:
                # Tied to z: a compiler that sees the network shared runs it once.
                tied = jnp.where(jnp.isfinite(z).all(), x, 0.0)
                return enn.apply(params, {}, tied, z)[0].train

            return jax.lax.map(one, zs)

        def shared(params: Any, x: Any, zs: Any, enn: Any) -> Any:
            return forwarders.predict_at_indices(enn, params, {}, x, zs)

        runs: Runs = {}
        counts = {}
        for name, function in (("loop over indices", plain), ("ours", shared)):
            run = functools.partial(function, enn=posterior.enn)
            runs[name], counts[name] = compiled(run, posterior.params, x, zs)
        report(f"linearised Laplace, MLP {sizes}, 200 indices", runs, repeats)


def sghmc(repeats: int) -> None:
    draw = np.random.default_rng(0)
    num_steps = 200
    for sizes, inputs, rows in (([50, 50, 2], 2, 100), ([256, 256, 10], 64, 128)):
        enn = networks.make_einsum_ensemble_mlp_enn(sizes, 1, nonzero_bias=False)
        batch = ArrayBatch(
            x=jnp.asarray(draw.normal(size=(rows, inputs)), jnp.float32),
            y=jnp.asarray(draw.integers(sizes[-1], size=(rows, 1))),
        )
        params, _ = enn.init(jax.random.key(0), batch.x, 0)
        single = losses.XentLoss(sizes[-1])
        loss = losses.average_single_index_loss(single, 1)

        def grads_of(params: Any, batch: Any, enn: Any, loss: Any) -> Any:
            key = jax.random.key(1)
            return jax.grad(lambda p: loss(enn, p, {}, batch, key)[0])(params)

        train = functools.partial(grads_of, enn=enn, loss=loss)

        def decay(params: Any, batch: Any) -> Any:
            return jax.tree.map(lambda p: 0.1 * p, params)

        size = sum(leaf.size for leaf in jax.tree.leaves(params))
        for what, gradients in (("training", train), ("the update alone", decay)):
            runs: Runs = {}
            for name, optimizer, normal in (
                ("Adam", optax.adam(1e-3), sgmcmc.normal),
                ("SGHMC", posteriors.sghmc(1e-4, 1000), sgmcmc.normal),
                (
                    "SGHMC with jax.random.normal",
                    posteriors.sghmc(1e-4, 1000),
                    jax.random.normal,
                ),
            ):

                def many(params: Any, opt_state: Any, batch: Any, opt: Any, g: Any):
                    def step(_: int, carry: Any) -> Any:
                        params, opt_state = carry
                        grads = g(params, batch)
                        updates, opt_state = opt.update(grads, opt_state, params)
                        return optax.apply_updates(params, updates), opt_state

                    carry = (params, opt_state)
                    return jax.lax.fori_loop(0, num_steps, step, carry)

                run = functools.partial(many, opt=optimizer, g=gradients)
                with mock.patch.object(sgmcmc, "normal", normal):
                    runs[name], _ = compiled(run, params, optimizer.init(params), batch)
            title = f"{num_steps} steps of {what}, MLP {sizes}, {size} weights"
            report(title, runs, repeats)


def fit(repeats: int) -> None:
    draw = np.random.default_rng(0)
    x = draw.normal(size=(20_000, 256)).astype(np.float32)
    y = draw.integers(10, size=(20_000, 1))
    enn = networks.wrap_net_fn_as_enn(lambda x: hk.nets.MLP([512, 256, 10])(x))
    params, state = jax.jit(enn.init)(jax.random.key(0), x[:2], jax.random.key(0))

    def batches(num_rows: int = len(x)) -> Iterator[ArrayBatch]:
        for start in range(0, num_rows, 1000):
            rows = slice(start, start + 1000)
            yield ArrayBatch(x=x[rows], y=y[rows])

    @jax.jit
    def nll(params: Any, batch: ArrayBatch) -> jax.Array:
        out, _ = enn.apply(params, state, batch.x, jax.random.key(0))
        logits = networks.parse_net_output(out)
        return optax.softmax_cross_entropy_with_integer_labels(
            logits, batch.y[:, 0]
        ).sum()

    def forward() -> float:
        return float(sum(nll(params, batch) for batch in batches()))

    runs: Runs = {"one forward pass over the rows": forward}
    for structure in ("diagonal", "kronecker", "per_output"):
        for num_rows in (1000, len(x)):
            runs[f"fit_laplace, {structure}, {num_rows} rows"] = functools.partial(
                lambda structure, num_rows: posteriors.fit_laplace(
                    enn,
                    params,
                    state,
                    batches(num_rows),
                    "categorical",
                    structure=structure,
                    last_layer="mlp/~/linear_2",
                ),
                structure,
                num_rows,
            )
    report("MLP [512, 256, 10], 20 000 rows, last layer of 257 × 10", runs, repeats)


def main() -> None:
    cases = {f.__name__: f for f in (resnet, linearised, sghmc, fit)}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--only", choices=cases, help="one of the cases")
    args = parser.parse_args()
    for name, case in cases.items():
        if args.only in (None, name):
            case(args.repeats)


if __name__ == "__main__":
    main()
