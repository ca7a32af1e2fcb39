import dataclasses

import jax
import numpy as np
import pytest

from enn import datasets
from enn.datasets import base


def test_array_batch_takes_its_fields_by_position_and_by_name():
    x, y = np.ones([2, 1]), np.zeros(2)
    wanted = datasets.ArrayBatch(x=x, y=y, weights=3)
    for batch in (
        datasets.ArrayBatch(x, y, weights=3),
        datasets.ArrayBatch(x, y, None, 3),
        datasets.ArrayBatch(x, y=y, weights=3),
        # As dataclasses of chex do.
        datasets.ArrayBatch({"x": x, "y": y, "weights": 3}),  # pyrefly: ignore[missing-argument]
        datasets.ArrayBatch.from_tuple((x, y, None, 3, {})),
    ):
        assert all(batch[name] is wanted[name] for name in ("x", "y", "weights"))
        assert batch.data_index is None
        assert batch.extra == {}


@pytest.mark.parametrize(
    ("args", "kwargs", "message"),
    [
        ([np.ones(2)], {}, "missing a required argument: 'y'"),
        ([1, 2], {"x": 1}, "multiple values for argument 'x'"),
        ([1, 2, 3, 4, {}, 6], {}, "too many positional arguments"),
        ([1, 2], {"labels": 1}, "unexpected keyword argument 'labels'"),
    ],
)
def test_array_batch_names_arguments_that_do_not_fit(args, kwargs, message):
    with pytest.raises(TypeError, match=message):
        datasets.ArrayBatch(*args, **kwargs)


def test_array_batch_is_a_mapping_in_the_order_of_its_fields():
    batch = datasets.ArrayBatch(x=1, y=2)
    assert list(batch) == ["x", "y", "data_index", "weights", "extra"]
    assert dict(batch) == {
        "x": 1,
        "y": 2,
        "data_index": None,
        "weights": None,
        "extra": {},
    }
    assert batch["y"] == batch.get("y") == 2


@pytest.mark.strict
def test_array_batch_is_a_pytree_with_alphabetical_leaves_and_no_nones():
    batch = datasets.ArrayBatch(x=1, y=2, data_index=3, weights=4, extra={"a": 5})
    assert jax.tree.leaves(batch) == [3, 5, 4, 1, 2]
    assert jax.tree.leaves(datasets.ArrayBatch(x=1, y=2)) == [1, 2]
    assert jax.tree.map(lambda leaf: -leaf, batch)["extra"] == {"a": -5}


def test_array_batch_is_frozen_and_replaced():
    batch = datasets.ArrayBatch(x=1, y=2)
    with pytest.raises(dataclasses.FrozenInstanceError):
        batch.x = 3  # pyrefly: ignore[read-only]
    assert batch.replace(x=3) == dataclasses.replace(batch, x=3)
    assert (batch.x, batch.replace(x=3).x) == (1, 3)


def test_array_batches_do_not_share_extra():
    first, second = (datasets.ArrayBatch(x=1, y=2) for _ in range(2))
    first.extra["a"] = 1
    assert second.extra == {}


def test_ood_variants():
    assert [variant.name for variant in datasets.OodVariant] == [
        "WHOLE",
        "IN_DISTRIBUTION",
        "OUT_DISTRIBUTION",
    ]
    assert datasets.OodVariant.valid_values() == [
        "eval",
        "eval_in_dist",
        "eval_out_dist",
    ]


def test_dataset_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        datasets.Dataset()  # pyrefly: ignore[bad-instantiation]
    assert datasets.Dataset.__abstractmethods__ == {
        "num_classes",
        "eval_input_shape",
        "train_dataset",
        "eval_datasets",
    }


def test_transformers_are_the_first_positional_fields():
    @dataclasses.dataclass
    class Numbers(datasets.DatasetWithTransform):
        num_classes = 2
        eval_input_shape = (1,)

        def train_dataset(self):
            return iter(self.train_ds_transformer([1, 2]))

        def eval_datasets(self):
            return {name: iter(f([3])) for name, f in self.eval_ds_transformers.items()}

    numbers = Numbers(reversed, {"eval": list})
    assert list(numbers.train_dataset()) == [2, 1]
    assert list(numbers.eval_datasets()["eval"]) == [3]


def test_default_eval_transformers_serve_many_classes():
    @dataclasses.dataclass
    class Exported:
        eval_ds_transformers: dict = datasets.EVAL_TRANSFORMERS_DEFAULT

    @dataclasses.dataclass
    class Fresh:
        another_name: dict = dataclasses.field(
            default_factory=base.default_eval_transformers
        )

    stream = [1, 2]
    assert Exported().eval_ds_transformers["eval"](stream) is stream
    assert list(Fresh().another_name) == ["eval"]
    assert Fresh().another_name is not Fresh().another_name


@pytest.mark.parametrize("name", datasets.__all__)
def test_every_public_name_exists(name):
    assert getattr(datasets, name) is not None


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="Mnits"):
        datasets.Mnits  # noqa: B018
