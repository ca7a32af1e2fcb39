import grain
import numpy as np
import pytest

from enn import datasets
from enn.datasets import OodVariant

LABELS = np.tile(np.arange(10), 200)


class Examples:
    """Examples whose image is their number."""

    def __init__(self, labels):
        self.labels = np.asarray(labels)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, row):
        return datasets.ArrayBatch(x=np.float32(row), y=np.int64(self.labels[row]))


def _apply(transformer, labels=LABELS):
    """The labels and row numbers that a transformer keeps."""
    dataset = transformer(grain.MapDataset.source(Examples(labels)))
    kept = [dataset[i] for i in range(len(dataset))]
    return [int(example.y) for example in kept], [int(example.x) for example in kept]


def test_sampled_classes_are_the_golden_ones():
    np.testing.assert_array_equal(datasets.sample_classes(10, 2, 321), [6, 3])
    np.testing.assert_array_equal(
        datasets.sample_classes(100, 20, 321),
        [66, 30, 10, 18, 55, 76, 96, 48, 88, 14, 50, 64, 41, 36, 82, 63, 32, 54, 6, 72],
    )


def test_more_classes_than_there_are_cannot_be_sampled():
    with pytest.raises(ValueError, match="larger sample"):
        datasets.sample_classes(3, 4, 0)


@pytest.mark.parametrize(
    ("variant", "kept"),
    [
        (OodVariant.WHOLE, [0, 1, 2, 3, 4, 5]),
        (OodVariant.IN_DISTRIBUTION, [1, 3, 4]),
        (OodVariant.OUT_DISTRIBUTION, [0, 2, 5]),
    ],
)
def test_one_side_of_a_split_keeps_its_order(variant, kept):
    transformer = datasets.get_dataset_transform_from_type(variant, [7, 2])
    labels, rows = _apply(transformer, [2, 0, 7, 1, 1, 2])
    assert rows == kept
    assert labels == [[2, 0, 7, 1, 1, 2][row] for row in kept]


@pytest.mark.parametrize("ood_labels", [[0], np.array([0])])
def test_label_zero_alone_can_be_out_of_distribution(ood_labels):
    # The original asked whether any label is non-zero, and kept everything.
    sides = {
        variant: datasets.get_dataset_transform_from_type(variant, ood_labels)
        for variant in OodVariant
    }
    assert set(_apply(sides[OodVariant.IN_DISTRIBUTION])[0]) == set(range(1, 10))
    assert set(_apply(sides[OodVariant.OUT_DISTRIBUTION])[0]) == {0}


def test_without_ood_labels_everything_is_in_distribution():
    # The original kept everything on both sides.
    inside = datasets.get_dataset_transform_from_type(OodVariant.IN_DISTRIBUTION, [])
    outside = datasets.get_dataset_transform_from_type(OodVariant.OUT_DISTRIBUTION, [])
    assert len(_apply(inside)[0]) == 2000
    assert _apply(outside)[0] == []


def test_an_unknown_variant_raises():
    with pytest.raises(ValueError, match=r"must be one of <OodVariant.WHOLE"):
        datasets.get_dataset_transform_from_type("eval", [1])


def test_evaluation_splits_by_the_sampled_classes():
    _, transformers = datasets.make_ood_transformers(10)
    assert list(transformers) == OodVariant.valid_values()
    kept = {name: _apply(transformer)[0] for name, transformer in transformers.items()}
    assert {name: len(labels) for name, labels in kept.items()} == {
        "eval": 2000,
        "eval_in_dist": 1600,
        "eval_out_dist": 400,
    }
    assert set(kept["eval_out_dist"]) == {3, 6}


@pytest.mark.parametrize(
    ("proportion", "total", "out", "tolerance"),
    [(0.0, 1600, 0, 0), (1.0, 400, 400, 0), (0.001, 1601, 1, 6), (0.5, 800, 400, 80)],
)
def test_training_sees_its_proportion_of_ood_examples(
    proportion, total, out, tolerance
):
    transformer, _ = datasets.make_ood_transformers(
        10, ood_proportion_in_train=proportion
    )
    labels, rows = _apply(transformer)
    is_out = np.isin(labels, [3, 6])
    assert abs(len(rows) - total) <= tolerance
    assert abs(is_out.sum() - out) <= tolerance
    for kind in (False, True):
        assert (np.diff(np.array(rows)[is_out == kind]) > 0).all()


def test_mixing_ends_as_soon_as_one_kind_has_run_out():
    for seed in range(20):
        transformer, _ = datasets.make_ood_transformers(
            10, ood_proportion_in_train=0.5, seed=seed
        )
        ood_labels = datasets.sample_classes(10, 2, seed)
        is_out = np.isin(_apply(transformer, LABELS[:20])[0], ood_labels)
        # Of 16 and 4 examples, all of one kind.
        assert (~is_out).sum() == 16 or is_out.sum() == 4


def test_mixing_is_fixed_by_the_seed():
    def rows(seed):
        transformer, _ = datasets.make_ood_transformers(
            10, fraction_ood_classes=1.0, ood_proportion_in_train=0.9, seed=seed
        )
        return _apply(transformer)[1]

    assert rows(1) == rows(1)
    assert len(rows(1)) != len(rows(2))


def test_the_number_of_ood_classes_is_truncated():
    _, transformers = datasets.make_ood_transformers(100, fraction_ood_classes=0.29)
    labels, _ = _apply(transformers["eval_out_dist"], np.arange(100))
    assert len(labels) == 28


@pytest.mark.parametrize(
    "changes", [{"fraction_ood_classes": 1.1}, {"ood_proportion_in_train": -0.1}]
)
def test_proportions_out_of_range_raise(changes):
    with pytest.raises(ValueError, match=rf"{next(iter(changes))} must be in \[0, 1\]"):
        datasets.make_ood_transformers(10, **changes)


def test_a_split_after_a_filter_passes_over_its_holes():
    transformer = datasets.get_dataset_transform_from_type(
        OodVariant.OUT_DISTRIBUTION, [3]
    )
    examples = grain.MapDataset.source(Examples(LABELS[:30]))
    kept = transformer(examples.filter(lambda example: example.x >= 10))
    assert [float(example.x) for example in kept] == [13, 23]
    assert len(kept) == 2
