"""The benchmark on Fashion-MNIST, on a few made-up images."""

import importlib.util
import pathlib
import struct
import sys
from typing import Any

import numpy as np
import pytest
import scipy.special
import sklearn.metrics

from enn import sweeps
from tests.support.stored import random_images

pytestmark = pytest.mark.slow

FILE = pathlib.Path(__file__).parents[1] / "benchmarks" / "fashion_mnist.py"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    spec = importlib.util.spec_from_file_location("fashion_mnist", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "fashion_mnist", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "BATCH_SIZE", 8)
    monkeypatch.setattr(module, "load_digits", lambda: random_images(20, (28, 28)))
    return module


def _write_idx(path: pathlib.Path, array: np.ndarray) -> None:
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    path.write_bytes(header + array.tobytes())


@pytest.fixture
def source(tmp_path: pathlib.Path) -> pathlib.Path:
    for split, num_rows in (("train", 50), ("t10k", 20)):
        labels = (np.arange(num_rows) % 10).astype(np.uint8)
        images = random_images(num_rows, (28, 28))
        _write_idx(tmp_path / f"{split}-images-idx3-ubyte", images)
        _write_idx(tmp_path / f"{split}-labels-idx1-ubyte", labels)
    return tmp_path


def test_every_method_runs_goes_on_and_is_reported(
    benchmark, source, tmp_path, monkeypatch, capsys
):
    methods = ["lenet", "dropout", "epinet", "ensemble-2-priors"]
    monkeypatch.setattr(benchmark, "METHODS", {name: name for name in methods})
    monkeypatch.setattr(benchmark, "STEPS", {40: 2})
    results = tmp_path / "results"

    def call(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["fashion_mnist.py", *arguments])
        benchmark.main()
        return capsys.readouterr().out

    run = ["run", str(results), "--source", str(source), "--seeds"]
    call(*run, "1")
    written = {file: file.stat().st_mtime_ns for file in results.iterdir()}
    assert len(written) == len(methods)
    monkeypatch.setattr(benchmark, "METHODS", {"lenet": "lenet"})
    call(*run, "2")
    assert (
        written.items() < {f: f.stat().st_mtime_ns for f in results.iterdir()}.items()
    )

    monkeypatch.setattr(benchmark, "METHODS", {name: name for name in methods})
    table = call("report", str(results), "--picture", str(tmp_path / "new" / "a.png"))
    lines = [line.split(" | ") for line in table.splitlines()]
    assert [line[1:3] for line in lines[2:]] == [
        [name, "2" if name == "lenet" else "1"] for name in methods
    ]
    rows = sweeps.load(results)
    accuracies = rows["accuracy"][rows["method"] == "lenet"]
    error = abs(accuracies[0] - accuracies[1]) / 2  # √(½ Δ²) / √2
    assert lines[2][3] == f"{accuracies.mean():.3f} ± {error:.3f}"
    assert (tmp_path / "new" / "a.png").stat().st_size > 1000

    num_params = dict(zip(rows["method"], rows["num_params"], strict=True))
    assert num_params["dropout"] == num_params["lenet"]
    assert num_params["ensemble-2-priors"] == 4 * num_params["lenet"]
    assert 0 < num_params["epinet"] - num_params["lenet"] < 0.2 * num_params["lenet"]


def test_smaller_ensembles_are_the_first_members(
    benchmark, source, monkeypatch
) -> None:
    monkeypatch.setattr(benchmark, "PARTS", {"ensemble-3": (2, 3)})
    names = {"ensemble-2": "two", "ensemble-3": "three"}
    monkeypatch.setattr(benchmark, "METHODS", names)
    monkeypatch.setattr(benchmark, "STEPS", {40: 2})
    (task,) = benchmark.make_tasks([40], 1)
    assert task["agent"] == "ensemble-3"
    together = benchmark.run_one(task, str(source))
    assert together["method"] == ["ensemble-2", "ensemble-3"]
    monkeypatch.setattr(benchmark, "PARTS", {})
    for i, agent in enumerate(together["method"]):
        alone = benchmark.run_one(task | {"agent": agent}, str(source))
        for name in (
            "accuracy",
            "marginal_nll",
            "joint_nll_100",
            "auroc",
            "num_params",
        ):
            np.testing.assert_allclose(together[name][i], alone[name][0], rtol=1e-4)
    seconds = together["train_seconds"]
    assert seconds[0] == pytest.approx(seconds[1] * 2 / 3)


def test_scores_are_those_of_other_implementations(benchmark):
    rng = np.random.default_rng(0)
    logits = 3 * rng.normal(size=[7, 40, 10])
    unseen_logits = rng.normal(size=[7, 30, 10])
    labels = rng.integers(0, 10, 40)
    scores = benchmark.measure(logits, unseen_logits, labels)
    probs = scipy.special.softmax(logits, axis=-1)
    mean = probs.mean(axis=0)
    assert scores["accuracy"] == pytest.approx((mean.argmax(-1) == labels).mean())
    nll = sklearn.metrics.log_loss(labels, mean, labels=range(10))
    assert scores["marginal_nll"] == pytest.approx(nll, 1e-5)
    unseen = scipy.special.softmax(unseen_logits, axis=-1).mean(axis=0)
    entropies = scipy.stats.entropy(np.concatenate([mean, unseen]), axis=1)
    auroc = sklearn.metrics.roc_auc_score([0] * 40 + [1] * 30, entropies)
    assert scores["auroc"] == pytest.approx(auroc, 1e-5)
    # Of two anchors, the first is drawn k times in τ: the mean over all draws.
    log_probs = np.log(probs[:, np.arange(40), labels]).reshape(7, 20, 2)
    for tau in (10, 100):
        counts = np.arange(tau + 1)
        weights = scipy.stats.binom.pmf(counts, tau, 0.5)
        sums = log_probs[..., :1] * counts + log_probs[..., 1:] * (tau - counts)
        joint = -(scipy.special.logsumexp(sums, axis=0) - np.log(7))
        expected = joint @ weights
        spread = np.sqrt(((joint - expected[:, None]) ** 2 @ weights).sum()) / 20
        assert abs(scores[f"joint_nll_{tau}"] - expected.mean()) < 4 * spread


def test_the_page_has_the_table_of_the_runs(benchmark):
    docs = FILE.parents[1] / "docs"
    table = benchmark.make_table(str(docs / "fashion_mnist_runs"))
    assert table in (docs / "fashion_mnist.md").read_text(encoding="utf-8")
    assert len(table.splitlines()) == 2 + 3 * len(benchmark.METHODS)
