import grain
import jax
import numpy as np
import pytest

from enn import datasets


def _examples(num, **fields):
    rows = [
        datasets.ArrayBatch(x=np.full([2], i, np.float32), y=np.int64(i), **fields)
        for i in range(num)
    ]
    return grain.MapDataset.source(rows)


def test_a_dict_of_image_and_label_becomes_a_batch():
    batch = datasets.change_ds_dict_to_enn_batch({"image": 1, "label": 2, "id": 3})
    assert batch == datasets.ArrayBatch(x=1, y=2)


def test_a_dict_without_label_raises():
    with pytest.raises(ValueError, match=r"'image' and 'label', got \['id', 'image'\]"):
        datasets.change_ds_dict_to_enn_batch({"image": 1, "id": 3})


def test_examples_are_numbered_and_keep_all_fields():
    # The original discarded weights and extra.
    weight = np.float32(2.0)
    examples = _examples(3, weights=weight, extra={"a": 1})
    numbered = list(datasets.add_data_index_to_dataset(examples))
    assert [example.data_index for example in numbered] == [0, 1, 2]
    assert all(example.data_index.dtype == np.int64 for example in numbered)
    assert numbered[1].extra == {"a": 1}
    assert numbered[1].weights == weight
    np.testing.assert_array_equal(numbered[2].x, [2, 2])


def test_numbers_are_the_same_in_every_epoch():
    numbered = datasets.add_data_index_to_dataset(_examples(3)).repeat(2)
    assert [int(example.data_index) for example in numbered] == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize(
    ("drop_remainder", "sizes"), [(True, [4, 4]), (False, [4, 4, 2])]
)
@pytest.mark.parametrize("as_iter", [False, True])
def test_batches_without_data_parallelism(drop_remainder, sizes, as_iter):
    examples = _examples(10)
    examples = examples.to_iter_dataset() if as_iter else examples
    batches = list(
        datasets.slice_dataset_to_batches(examples, 4, False, drop_remainder)
    )
    assert [batch.x.shape for batch in batches] == [(size, 2) for size in sizes]
    np.testing.assert_array_equal(batches[1].y, [4, 5, 6, 7])
    assert batches[0].y.dtype == np.int64


@pytest.mark.parametrize(
    ("num_devices", "num", "drop_remainder", "shapes"),
    [
        (1, 10, True, [(1, 4), (1, 4)]),
        (1, 10, False, [(1, 4), (1, 4), (1, 2)]),
        (2, 11, True, [(2, 2), (2, 2)]),
        # The last group would hold parts of 2 and 1 examples, which do not stack.
        (2, 11, False, [(2, 2), (2, 2)]),
    ],
)
def test_batches_with_data_parallelism(
    monkeypatch, num_devices, num, drop_remainder, shapes
):
    monkeypatch.setattr(jax, "device_count", lambda: num_devices)
    monkeypatch.setattr(jax, "local_device_count", lambda: num_devices)
    batches = list(
        datasets.slice_dataset_to_batches(_examples(num), 4, True, drop_remainder)
    )
    assert [batch.y.shape for batch in batches] == shapes
    np.testing.assert_array_equal(batches[1].y.ravel(), [4, 5, 6, 7])
    assert batches[1].x.shape == (*shapes[1], 2)


def test_a_process_batches_for_its_own_devices(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 4)
    monkeypatch.setattr(jax, "local_device_count", lambda: 2)
    batch = next(iter(datasets.slice_dataset_to_batches(_examples(20), 8, True)))
    # 8 examples over 4 devices, of which 2 are here.
    np.testing.assert_array_equal(batch.y, [[0, 1], [2, 3]])


def test_the_batch_size_per_device(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 4)
    assert datasets.get_per_device_batch_size(128) == 32
    with pytest.raises(ValueError, match="got 130 for 4 devices"):
        datasets.get_per_device_batch_size(130)


class Named(datasets.DatasetWithTransform):
    num_classes = 3
    eval_input_shape = (2,)

    def __init__(self, name):
        super().__init__(f"{name} train transformer", {name: list})
        self.name = name

    # Names stand in for the iterators.
    def train_dataset(self):  # pyrefly: ignore[bad-override]
        return f"{self.name} train"

    def eval_datasets(self):  # pyrefly: ignore[bad-override]
        return {"eval": f"{self.name} eval"}


class FourClasses(Named):
    num_classes = 4


def test_training_data_is_overridden_and_nothing_else():
    dataset = datasets.OverrideTrainDataset(Named("original"), Named("new"))
    assert dataset.train_dataset() == "new train"
    assert dataset.eval_datasets() == {"eval": "original eval"}
    assert dataset.num_classes == 3
    assert dataset.eval_input_shape == (2,)
    assert dataset.train_ds_transformer == "original train transformer"
    assert dataset.eval_ds_transformers == {"original": list}
    assert (dataset.original_dataset.name, dataset.new_dataset.name) == (
        "original",
        "new",
    )


def test_overriding_needs_as_many_classes():
    with pytest.raises(ValueError, match="got 3 and 4"):
        datasets.OverrideTrainDataset(Named("original"), FourClasses("new"))
