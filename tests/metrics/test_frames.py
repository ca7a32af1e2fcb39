import numpy as np
import pytest

from enn import losses, metrics
from tests.support.batches import LOGITS, softmax

pandas = pytest.importorskip("pandas")
stats = pytest.importorskip("scipy.stats")


def test_classification_against_numpy() -> None:
    rows = [f"row {i}" for i in range(LOGITS.shape[1])]
    frame = metrics.predictions_frame(LOGITS, index=rows)
    assert list(frame.columns) == [
        *("class", "p(0)", "p(1)", "p(2)", "p(3)", "epistemic", "total")
    ]
    assert list(frame.index) == rows
    probs = softmax(LOGITS)
    mean = probs.mean(axis=0)
    np.testing.assert_array_equal(frame["class"], mean.argmax(axis=1))
    np.testing.assert_allclose(frame.filter(like="p("), mean, rtol=1e-5)
    total = stats.entropy(mean, axis=1)
    np.testing.assert_allclose(frame["total"], total, rtol=1e-5)
    aleatoric = stats.entropy(probs, axis=2).mean(axis=0)
    np.testing.assert_allclose(frame["epistemic"], total - aleatoric, rtol=1e-4)


def test_regression_of_one_gaussian() -> None:
    parse = losses.GaussianNLLLoss().parse
    outputs = np.random.default_rng(0).normal(size=(1, 3, 4))
    frame = metrics.predictions_frame(outputs, parse, quantiles=(0.1, 0.9))
    names = ("mean", "q0.1", "q0.9", "epistemic", "total")
    assert list(frame.columns) == [f"{name}_{k}" for k in (0, 1) for name in names]
    mean, std = map(np.asarray, parse(outputs))
    for k in (0, 1):
        np.testing.assert_allclose(frame[f"mean_{k}"], mean[0, :, k], rtol=1e-6)
        np.testing.assert_allclose(frame[f"total_{k}"], std[0, :, k], rtol=1e-6)
        np.testing.assert_allclose(frame[f"epistemic_{k}"], 0, atol=1e-7)
        for level in (0.1, 0.9):
            expected = stats.norm.ppf(level, mean[0, :, k], std[0, :, k])
            np.testing.assert_allclose(frame[f"q{level}_{k}"], expected, 1e-4, 1e-4)


def test_uncertainties_of_a_mixture_add_up() -> None:
    outputs = np.array([[[0.0]], [[4.0]]])  # Means 0 and 4, noise of variance 9.
    frame = metrics.predictions_frame(outputs, metrics.make_constant_std(3.0))
    assert list(frame.columns) == [
        "mean",
        "q0.05",
        "q0.5",
        "q0.95",
        "epistemic",
        "total",
    ]
    row = frame.iloc[0]
    np.testing.assert_allclose(row[["mean", "q0.5", "epistemic"]], 2, rtol=1e-5)
    np.testing.assert_allclose(row["total"], np.sqrt(4 + 9), rtol=1e-6)


def test_shapes_and_names_are_checked() -> None:
    with pytest.raises(ValueError, match=r"\[num_enn_samples, batch, num_outputs\]"):
        metrics.predictions_frame(LOGITS[0])
    with pytest.raises(ValueError, match="class_names must have 4 entries, got 2"):
        metrics.predictions_frame(LOGITS, class_names=["a", "b"])
    with pytest.raises(ValueError, match="levels must be between 0 and 1, got 95"):
        metrics.predictions_frame(LOGITS, metrics.make_constant_std(1), quantiles=[95])
