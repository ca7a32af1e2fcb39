"""MNIST, handwritten digits, and Fashion-MNIST, clothes, of the same shapes."""

import dataclasses
from typing import Any

from enn import _checks
from enn.datasets import base, image_ops, pipeline, sources, utils
from enn.datasets.image_dataset import SmallImages


class Split(base.SizedSplit):
    """Splits by their number of examples.

    Numbers follow the original `enn`: training reads 60 000 images.
    """

    TRAIN = 50000
    TEST = 10000


@dataclasses.dataclass
class Mnist(SmallImages):
    """MNIST (LeCun et al., 1998), 28 x 28 pixels, 10 classes.

    Batches have `x` float32 `[batch, 28, 28, 1]`, `y` and `data_index` int64 `[batch]`,
    with data parallelism `[local_devices, batch / devices, ...]`. They come from
    `train_dataset`, endless, and `eval_datasets`, one pass.

    Data indices number the training examples after the transformer, as in the original
    `enn`, and the evaluation examples before it.

    >>> from enn import datasets
    >>> data = datasets.Mnist(source="my_images")  # Nothing is read yet
    >>> data.num_classes, data.eval_input_shape, data.hub_name
    (10, (28, 28, 1), 'ylecun/mnist')

    Attributes:
      train_ds_transformer: maps the `grain.MapDataset` of training examples, with `x`
        uint8 `[28, 28, 1]`, to another one.
      eval_ds_transformers: by name, maps the `grain.MapDataset` of preprocessed
        evaluation examples to another one.
      train_batch: size of training batches, over all devices.
      eval_batch: size of evaluation batches, over all devices.
      normalization_mode: "standard" for images of mean 0 and standard deviation 1
        each, "identity" for pixels in [0, 1].
      train_data_parallelism: whether training batches have an axis of devices.
      eval_data_parallelism: whether evaluation batches have an axis of devices.

    Further ones, by keyword: see `SmallImages` and `StoredImages`.
    """

    train_ds_transformer: base.DatasetTransformer = base.identity_transformer
    eval_ds_transformers: dict[str, base.DatasetTransformer] = dataclasses.field(
        default_factory=base.default_eval_transformers
    )
    train_batch: int = 128
    eval_batch: int = 100
    normalization_mode: str = "standard"
    train_data_parallelism: bool = True
    eval_data_parallelism: bool = False

    @property
    def hub_name(self) -> str:
        """Name of the data set on the Hugging Face hub."""
        return "ylecun/mnist"

    @property
    def image_kind(self) -> sources.ImageKind:
        """What the stored images are."""
        return sources.ImageKind(num_classes=10, mode="L", size=(28, 28))

    def train_examples(self, table: sources.ImageTable) -> Any:
        """Returns the transformed and preprocessed training examples."""
        examples = pipeline.transformed(table, self.train_ds_transformer)
        return utils.add_data_index_to_dataset(examples).map(self.eval_preprocess)

    def eval_preprocess(self, batch: base.ArrayBatch) -> base.ArrayBatch:
        """Returns an example, preprocessed."""
        return preprocess_batch(batch, self.normalization_mode)


@dataclasses.dataclass
class FashionMnist(Mnist):
    """Fashion-MNIST (Xiao et al., 2017, https://arxiv.org/abs/1708.07747); see `Mnist`.

    Its classes are T-shirt, trouser, pullover, dress, coat, sandal, shirt, sneaker, bag
    and ankle boot. `source="/usr/share/datasets/fashion-mnist"` is where Debian's
    package `dataset-fashion-mnist` puts it.

    >>> from enn import datasets
    >>> data = datasets.FashionMnist(source="/usr/share/datasets/fashion-mnist")
    >>> data.num_classes, data.hub_name  # From the hub without a source
    (10, 'zalando-datasets/fashion_mnist')
    """

    @property
    def hub_name(self) -> str:
        """Name of the data set on the Hugging Face hub."""
        return "zalando-datasets/fashion_mnist"


def preprocess_batch(
    batch: base.ArrayBatch, normalization_mode: str
) -> base.ArrayBatch:
    """Returns one example with its image as float32.

    Args:
      batch: one example, `x` of bytes, or of floats in [0, 1].
      normalization_mode: "standard" for mean 0 and standard deviation 1, "identity" for
        pixels in [0, 1].

    Raises:
      ValueError: for another mode.
    """
    _checks.one_of("normalization_mode", normalization_mode, ["standard", "identity"])
    image = image_ops.to_float(batch.x)
    if normalization_mode == "standard":
        image = image_ops.standardize(image)
    return dataclasses.replace(batch, x=image)
