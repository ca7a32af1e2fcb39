"""CIFAR-10 and CIFAR-100: small photographs."""

import dataclasses
import enum
from typing import Any

import numpy as np

from enn import _checks
from enn.datasets import base, image_ops, pipeline, sources
from enn.datasets.image_dataset import SmallImages

_MEAN = np.array([0.49139968, 0.48215841, 0.44653091], np.float32)
_STD = np.array([0.24703223, 0.24348513, 0.26158784], np.float32)
_SHAPE = (32, 32, 3)


class CifarVariant(enum.Enum):
    """The two data sets by their number of classes."""

    CIFAR10 = 10
    CIFAR100 = 100

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self.value

    @property
    def tfds_name(self) -> str:
        """Name of the data set in the original `enn`."""
        return f"cifar{self.value}"


class Split(base.SizedSplit):
    """Splits by their number of examples."""

    TRAIN = 50000
    TEST = 10000


@dataclasses.dataclass
class Cifar(SmallImages):
    """CIFAR-10 or CIFAR-100 (Krizhevsky, 2009), 32 x 32 pixels.

    Batches have `x` float32 `[batch, 32, 32, 3]`, `y` and `data_index` int64 `[batch]`,
    with data parallelism `[local_devices, batch / devices, ...]`. They come from
    `train_dataset`, endless, and `eval_datasets`, one pass. Unless `keep_image_size`,
    training images are cropped to 24 x 24.

    Data indices number the examples before the transformers.

    Attributes:
      train_ds_transformer: maps the `grain.MapDataset` of training examples, with `x`
        uint8 `[32, 32, 3]`, to another one.
      eval_ds_transformers: by name, maps the `grain.MapDataset` of preprocessed
        evaluation examples to another one.
      cifar_variant: which of the two.
      train_batch: size of training batches, over all devices.
      eval_batch: size of evaluation batches, over all devices.
      normalization_mode: see `preprocess_batch`.
      random_flip: see `preprocess_batch`.
      random_crop: see `preprocess_batch`.
      cutout: see `preprocess_batch`.
      keep_image_size: see `preprocess_batch`.
      num_train: number of training examples, the first ones stored.
      train_data_parallelism: whether training batches have an axis of devices.
      eval_data_parallelism: whether evaluation batches have an axis of devices.

    Further ones, by keyword: see `SmallImages` and `StoredImages`.
    """

    train_ds_transformer: base.DatasetTransformer = base.identity_transformer
    eval_ds_transformers: dict[str, base.DatasetTransformer] = dataclasses.field(
        default_factory=base.default_eval_transformers
    )
    cifar_variant: CifarVariant = CifarVariant.CIFAR10
    train_batch: int = 128
    eval_batch: int = 100
    normalization_mode: str = "custom"
    random_flip: bool = True
    random_crop: bool = True
    cutout: bool = False
    keep_image_size: bool = False
    num_train: int = 50_000
    train_data_parallelism: bool = True
    eval_data_parallelism: bool = False

    @property
    def hub_name(self) -> str:
        """Name of the data set on the Hugging Face hub."""
        return f"uoft-cs/{self.cifar_variant.tfds_name}"

    @property
    def image_kind(self) -> sources.ImageKind:
        """What the stored images are."""
        return sources.ImageKind(
            num_classes=self.cifar_variant.num_classes, mode="RGB", size=_SHAPE[:2]
        )

    def train_examples(self, table: sources.ImageTable) -> Any:
        """Returns the transformed and preprocessed training examples."""
        num_train = _checks.positive_int("num_train", self.num_train)
        table = table.take(slice(num_train))
        examples = pipeline.transformed(table, self.train_ds_transformer)
        _, seed = pipeline.process_seeds(self.seed)
        return examples.random_map(self._train_preprocess, seed=seed)

    def eval_preprocess(self, batch: base.ArrayBatch) -> base.ArrayBatch:
        """Returns an evaluation example, preprocessed."""
        return preprocess_batch(
            batch,
            self.normalization_mode,
            random_crop=False,
            random_flip=False,
            cutout=False,
            keep_image_size=self.keep_image_size,
        )

    def _train_preprocess(
        self, batch: base.ArrayBatch, rng: np.random.Generator
    ) -> base.ArrayBatch:
        return preprocess_batch(
            batch,
            self.normalization_mode,
            self.random_crop,
            self.random_flip,
            self.cutout,
            self.keep_image_size,
            is_training=True,
            rng=rng,
        )


@dataclasses.dataclass
class Cifar10(Cifar):
    """CIFAR-10; see `Cifar`.

    >>> from enn import datasets
    >>> data = datasets.Cifar10(source="my_images")  # Nothing is read yet
    >>> data.num_classes, data.eval_input_shape, data.hub_name
    (10, (32, 32, 3), 'uoft-cs/cifar10')
    """


@dataclasses.dataclass
class Cifar100(Cifar):
    """CIFAR-100, by default with cutout and at full size; see `Cifar`.

    Cutout: DeVries & Taylor, 2017, https://arxiv.org/abs/1708.04552.

    >>> from enn import datasets
    >>> data = datasets.Cifar100()  # Fetched when batches are asked for
    >>> data.num_classes, data.keep_image_size, data.cutout
    (100, True, True)
    """

    cifar_variant: CifarVariant = CifarVariant.CIFAR100
    cutout: bool = True
    keep_image_size: bool = True


def preprocess_batch(
    batch: base.ArrayBatch,
    normalization_mode: str,
    random_crop: bool,
    random_flip: bool,
    cutout: bool,
    keep_image_size: bool,
    is_training: bool = False,
    rng: np.random.Generator | None = None,
) -> base.ArrayBatch:
    """Returns one example with its image normalised and, in training, augmented.

    Args:
      batch: one example, `x` of bytes, or of floats in [0, 1], `[32, 32, 3]`.
      normalization_mode: "custom" for mean 0 and standard deviation 1 of each channel
        over the training data, "standard" for those of each image, "identity" for
        pixels in [-1, 1].
      random_crop: in training, whether to cut out 24 x 24 pixels or, with
        `keep_image_size`, 32 x 32 pixels of the image padded by 2 zeros on each side.
      random_flip: in training, whether to mirror with probability ½.
      cutout: in training, whether to set a square of 16 x 16 pixels to zero, with
        probability ½.
      keep_image_size: see `random_crop`.
      is_training: whether to augment.
      rng: source of the draws; None draws afresh at every call.

    Raises:
      ValueError: for another mode or, in training, shape.
    """
    _checks.one_of(
        "normalization_mode", normalization_mode, ["custom", "standard", "identity"]
    )
    image = image_ops.to_float(batch.x)
    match normalization_mode:
        case "custom":
            image = (image - _MEAN) / _STD
        case "standard":
            image = image_ops.standardize(2 * image - 1)
        case "identity":
            image = 2 * image - 1
    if is_training:
        _checks.shape("image", image, _SHAPE, str(list(_SHAPE)))
        rng = rng or np.random.default_rng()
        if random_crop and keep_image_size:
            padded = np.pad(image, [(2, 2), (2, 2), (0, 0)])
            image = image_ops.random_crop(padded, 32, 32, rng)
        elif random_crop:
            image = image_ops.random_crop(image, 24, 24, rng)
        if random_flip:
            image = image_ops.random_flip(image, rng)
        if cutout:
            image = image_ops.random_cutout(image, rng)
    return dataclasses.replace(batch, x=image)
