"""Input pipelines in images a second, beside the time that a training step takes.

    python benchmarks/input_pipeline.py [--repeats 5] [--workers 2] [--resnet50]

On images made here, in parquet files: 2000 PNGs of 32 x 32 pixels as CIFAR-10 has
them, and 128 JPEGs of 500 x 375 pixels as ImageNet has them. Each pipeline trains:
crops, mirrors, normalises, shuffles and batches.

- `Pillow alone`: decodes the same images one after the other and does nothing else.
- `plain loop`: decodes, preprocesses and stacks, one image after the other.
- `enn, threads`: the pipeline with `num_workers=0`, in its steady state.
- `enn, N processes`: the same batches from N worker processes.
- `training step`: one step of Adam alone, jitted, in images a second: of ResNet-18 on a
  CIFAR batch and, with --resnet50, of ResNet-50 on one of ImageNet.
"""

import argparse
import functools
import io
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import datasets as hf
import jax
import numpy as np
import optax
import pyarrow as pa
from _timing import median_seconds
from PIL import Image
from pyarrow import parquet

from enn import datasets, losses, networks
from enn.datasets import cifar, imagenet
from enn.networks import CanonicalResNets

CIFAR_BATCH, IMAGENET_BATCH = 128, 32


def photograph(rng: np.random.Generator, height: int, width: int) -> Image.Image:
    """Smooth noise, which compresses about as photographs do."""
    noise = rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    smooth = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
    grain = rng.normal(0, 6, (height, width, 3))
    return Image.fromarray(np.clip(smooth + grain, 0, 255).astype(np.uint8))


def encoded_images(num: int, height: int, width: int, kind: str) -> list[bytes]:
    rng = np.random.default_rng(0)
    encoded = []
    for _ in range(num):
        buffer = io.BytesIO()
        photograph(rng, height, width).save(buffer, kind)
        encoded.append(buffer.getvalue())
    return encoded


def write(path: pathlib.Path, encoded: list[bytes]) -> dict[str, pathlib.Path]:
    cells = [{"bytes": data, "path": None} for data in encoded]
    labels = [i % 10 for i in range(len(encoded))]
    parquet.write_table(pa.table({"image": cells, "label": labels}), path)
    return {"train": path}


def decode(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def preprocess_cifar(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    batch = datasets.ArrayBatch(x=image, y=0)
    flags = {"random_crop": True, "random_flip": True, "cutout": False}
    return cifar.preprocess_batch(
        batch, "custom", **flags, keep_image_size=False, is_training=True, rng=rng
    ).x


def preprocess_imagenet(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    batch = datasets.ArrayBatch(x=image, y=0)
    return imagenet.preprocess_train(batch, rng, (224, 224)).x


def stream_seconds(
    make_stream: Callable[[], Any], num_batches: int, repeats: int
) -> float:
    """Median time of `num_batches`, once what was read ahead has been used up."""
    seconds = []
    for _ in range(repeats):
        stream = make_stream()
        for _ in range(num_batches // 3):
            next(stream)
        start = time.perf_counter()
        for _ in range(num_batches):
            next(stream)
        seconds.append(time.perf_counter() - start)
        stream.close()
    return statistics.median(seconds)


def training_step(config: Any, batch: datasets.ArrayBatch) -> Callable[[], None]:
    enn = networks.EnsembleResNetENN(10, num_ensemble=1, config=config.value)
    loss_fn = losses.average_single_index_loss(losses.XentLoss(10), 1)
    optimizer = optax.adam(1e-3)
    key = jax.random.key(0)
    params, state = enn.init(key, batch.x, enn.indexer(key))
    opt_state = optimizer.init(params)

    @jax.jit
    def step(params: Any, state: Any, opt_state: Any, batch: Any) -> Any:
        def loss(params: Any) -> Any:
            value, (new_state, _) = loss_fn(enn, params, state, batch, key)
            return value, new_state

        grads, new_state = jax.grad(loss, has_aux=True)(params)
        updates, new_opt_state = optimizer.update(grads, opt_state)
        return optax.apply_updates(params, updates), new_state, new_opt_state

    return lambda: jax.block_until_ready(step(params, state, opt_state, batch))


def compare(
    name: str,
    encoded: list[bytes],
    make_stream: Callable[[int], Any],
    preprocess: Callable[[np.ndarray, np.random.Generator], np.ndarray],
    config: Any,
    batch_size: int,
    args: argparse.Namespace,
) -> None:
    num_batches = len(encoded) // batch_size
    num = num_batches * batch_size
    rng = np.random.default_rng(0)

    def pillow_alone() -> None:
        for data in encoded[:num]:
            decode(data)

    def plain_loop() -> None:
        for start in range(0, num, batch_size):
            rows = encoded[start : start + batch_size]
            np.stack([preprocess(decode(data), rng) for data in rows])

    runs = {"Pillow alone": pillow_alone, "plain loop": plain_loop}
    rates = {
        label: num / seconds
        for label, seconds in median_seconds(runs, args.repeats).items()
    }
    for num_workers in sorted({0, args.workers}):
        label = f"enn, {num_workers} processes" if num_workers else "enn, threads"
        make = functools.partial(make_stream, num_workers)
        seconds = stream_seconds(make, 3 * num_batches, args.repeats)
        rates[label] = 3 * num / seconds
    stream = make_stream(0)
    batch = next(stream)
    stream.close()
    if config:
        step = {"step": training_step(config, batch)}
        label = f"training step, {config.name}"
        rates[label] = batch_size / median_seconds(step, args.repeats)["step"]
    print(
        f"\n{name}, {num} images in batches of {batch_size}, median of {args.repeats}"
    )
    print(f"{'':28} {'images/s':>9} {'of plain loop':>14}")
    for label, rate in rates.items():
        print(f"{label:28} {rate:9.0f} {rate / rates['plain loop']:13.2f}x")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--resnet50", action="store_true")
    args = parser.parse_args()
    print(f"jax {jax.__version__}, {jax.devices()}")
    with tempfile.TemporaryDirectory() as name:
        directory = pathlib.Path(name)
        hf.config.HF_DATASETS_CACHE = str(directory / "cache")
        hf.disable_progress_bars()

        encoded = encoded_images(2000, 32, 32, "PNG")
        source = write(directory / "cifar.parquet", encoded)
        compare(
            "CIFAR-like",
            encoded,
            lambda num_workers: datasets.Cifar10(
                train_batch=CIFAR_BATCH,
                train_data_parallelism=False,
                source=source,
                num_workers=num_workers,
            ).train_dataset(),
            preprocess_cifar,
            CanonicalResNets.RESNET_18,
            CIFAR_BATCH,
            args,
        )

        encoded = encoded_images(128, 375, 500, "JPEG")
        source = write(directory / "imagenet.parquet", encoded)
        compare(
            f"ImageNet-like, {np.mean([len(e) for e in encoded]) / 1024:.0f} KiB each",
            encoded,
            lambda num_workers: datasets.Imagenet(
                train_batch=IMAGENET_BATCH,
                train_data_parallelism=False,
                source=source,
                num_workers=num_workers,
            ).train_dataset(),
            preprocess_imagenet,
            CanonicalResNets.RESNET_50 if args.resnet50 else None,
            IMAGENET_BATCH,
            args,
        )


if __name__ == "__main__":
    main()
