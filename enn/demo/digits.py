"""The demo's real data: handwritten digits, one of which is never trained on.

A network that knows what it doesn't know is more uncertain about the unseen digit.
"""

import dataclasses
import time
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from enn import _extras, calibration, losses, metrics, utils
from enn.datasets.base import ArrayBatch
from enn.demo import agents as demo_agents
from enn.demo import posteriors
from enn.supervised.base import sample_predictions

if TYPE_CHECKING:
    from matplotlib.figure import Figure

UNSEEN_DIGIT = 9
_NUM_SAMPLES = 100
_NUM_IMAGES = 10
_BINS = np.geomspace(1e-5, 2, 45)

LEGEND = f"""\
NLL in nats on test images of the digits trained on; joint NLL: of 10 labels at 2
images (dyadic). ECE: expected calibration error. AUROC: how well epistemic
uncertainty (BALD) tells the unseen digit {UNSEEN_DIGIT} from the others; 0.5 is
chance. 99 % sets: mean size of conformal sets, calibrated on half of the test images
to hold the label of the others in 99 % of cases."""


@dataclasses.dataclass(frozen=True)
class Digits:
    """Images `[num_data, 64]` in [0, 1] with labels `[num_data, 1]`.

    Attributes:
      train: two thirds of the images of the seen digits.
      seen: the other third.
      unseen: all images of the digit left out.
    """

    train: ArrayBatch
    seen: ArrayBatch
    unseen: ArrayBatch


@dataclasses.dataclass(frozen=True)
class Result:
    """What one agent does on the test images.

    Attributes:
      row: the agent's row of the table.
      seen: epistemic uncertainty of the seen digits, in bits.
      unseen: epistemic uncertainty of the unseen digit, in bits.
    """

    row: dict[str, Any]
    seen: np.ndarray
    unseen: np.ndarray


def load_digits(seed: int) -> Digits:
    """Returns scikit-learn's bundled digits, split at random."""
    bundle = _extras.require("sklearn.datasets", "demo").load_digits()
    order = np.random.default_rng(seed).permutation(len(bundle.target))
    x = (bundle.data[order] / 16).astype(np.float32)
    y = bundle.target[order, None]
    is_seen = y[:, 0] != UNSEEN_DIGIT
    num_train = 2 * is_seen.sum() // 3
    seen_x, seen_y = x[is_seen], y[is_seen]
    return Digits(
        train=ArrayBatch(x=seen_x[:num_train], y=seen_y[:num_train]),
        seen=ArrayBatch(x=seen_x[num_train:], y=seen_y[num_train:]),
        unseen=ArrayBatch(x=x[~is_seen], y=y[~is_seen]),
    )


def evaluate(name: str, digits: Digits, seed: int, steps: int) -> Result:
    """Trains an agent on the seen digits and measures it on the test images."""
    start = time.monotonic()
    trained = _train(name, digits.train, seed, steps)
    seconds = time.monotonic() - start
    logits = sample_predictions(trained, digits.seen.x, _NUM_SAMPLES)
    unseen_logits = sample_predictions(trained, digits.unseen.x, _NUM_SAMPLES)
    seen = _bald_bits(logits)
    unseen = _bald_bits(unseen_logits)
    labels = digits.seen.y
    row = {
        "agent": name,
        "parameters": sum(p.size for p in jax.tree.leaves(trained.state.params)),
        "seconds": seconds,
        "accuracy": metrics.make_accuracy_calculator()(logits, labels),
        "marginal NLL": metrics.make_nll_marginal_calculator()(logits, labels),
        "joint NLL": metrics.make_nll_polyadic_calculator(10, 2)(logits, labels),
        "ECE": metrics.SingleBatchECE(10)(logits, labels),
        "99 % sets": _mean_set_size(logits, labels),
        "AUROC": metrics.calculate_auroc(
            np.concatenate([seen, unseen]),
            np.repeat([0, 1], [len(seen), len(unseen)]),
        ),
    }
    return Result(row, seen, unseen)


def _train(name: str, train: ArrayBatch, seed: int, steps: int) -> Any:
    """Returns a trained experiment, or what has its `enn` and `state`."""
    if name in posteriors.METHODS:
        return posteriors.fit(name, posteriors.Training(train, seed, steps))
    agent = demo_agents.make_agents(posteriors.HIDDENS, prior_scale=1.0)[name]
    dataset = utils.make_batch_iterator(train, posteriors.BATCH_SIZE, seed)
    return demo_agents.train(name, agent, 10, losses.XentLoss(10), dataset, seed, steps)


def _bald_bits(logits: jax.Array) -> np.ndarray:
    bald = metrics.mutual_information(logits)
    # Below this, differences are those of float32 and say nothing about the images.
    return np.maximum(np.round(np.asarray(bald) / np.log(2), 5), 0)


def _mean_set_size(logits: jax.Array, labels: np.ndarray) -> float:
    half = len(labels) // 2
    sets = calibration.make_conformal_classifier(
        logits[:, :half], labels[:half], alpha=0.01, method="thr"
    )
    return sets(logits[:, half:]).sum(axis=1).mean()


def format_table(results: list[Result]) -> str:
    """Returns the rows of all agents as text, columns aligned."""
    rows = [[_format(value) for value in result.row.values()] for result in results]
    lines = [list(results[0].row), *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def _format(value: str | int | float) -> str:
    return str(value) if isinstance(value, str | int) else f"{float(value):.3f}"


def draw(results: list[Result], digits: Digits) -> "Figure":
    """Draws uncertainty of seen and unseen digits, and the images at its extremes.

    Uncertainties below the first bin count in it. The images are those of the last
    agent.
    """
    figure_class = _extras.require("matplotlib.figure", "plots").Figure
    size = (1.1 * _NUM_IMAGES, 2.6 * len(results) + 3.6)
    figure = figure_class(figsize=size, layout="constrained")
    heights = [2.6] * len(results) + [1.4, 1.4]
    parts = figure.subfigures(len(results) + 2, 1, height_ratios=heights)
    for part, result in zip(parts, results, strict=False):
        ax = part.subplots()
        for label, values in (
            ("test images of the digits trained on", result.seen),
            (f"images of the digit {UNSEEN_DIGIT}, never trained on", result.unseen),
        ):
            shares = np.full(len(values), 1 / len(values))
            shown = np.maximum(values, _BINS[0])
            ax.hist(shown, _BINS, weights=shares, alpha=0.6, label=label)
        ax.set_title(f"{result.row['agent']}: AUROC {result.row['AUROC']:.2f}")
        ax.set_xscale("log")
        ax.set(xlabel="epistemic uncertainty: BALD (bits)", ylabel="share of images")
        ax.spines[["top", "right"]].set_visible(False)
        ax.legend(frameon=False)
    uncertainty = np.concatenate([results[-1].seen, results[-1].unseen])
    images = np.concatenate([digits.seen.x, digits.unseen.x]).reshape(-1, 8, 8)
    labels = np.concatenate([digits.seen.y, digits.unseen.y])[:, 0]
    order = np.argsort(-uncertainty, kind="stable")
    for part, kind, chosen in (
        (parts[-2], "most", order[:_NUM_IMAGES]),
        (parts[-1], "least", order[::-1][:_NUM_IMAGES]),
    ):
        name = results[-1].row["agent"]
        part.suptitle(f"{kind} uncertain test images of the {name}: label, bits")
        for ax, i in zip(part.subplots(1, _NUM_IMAGES), chosen, strict=True):
            ax.imshow(images[i], cmap="gray_r")
            ax.set_title(f"{labels[i]}: {uncertainty[i]:.2f}")
            ax.set_axis_off()
    return figure
