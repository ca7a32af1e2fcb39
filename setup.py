"""Packaging of enn; pyproject.toml names the build system and sets the tools."""

import pathlib

import setuptools

ROOT = pathlib.Path(__file__).parent

metadata: dict[str, str] = {}
exec((ROOT / "enn" / "_metadata.py").read_text(), metadata)

PLOTS = ["matplotlib>=3.9", "pandas>=2.2"]
DEMO = [*PLOTS, "scikit-learn>=1.5"]
BERT = ["safetensors>=0.7", "tokenizers>=0.20"]
FLAX = ["flax>=0.12"]
EQUINOX = ["equinox>=0.13"]
DATASETS = ["datasets>=4", "grain>=0.2.12", "pillow>=10"]
CLUSTER = ["dask>=2026.8", "distributed>=2026.8"]
CHECKPOINTS = ["orbax-checkpoint>=0.11", "pooch>=1.8", "safetensors>=0.7"]
TEST = [
    *DATASETS,
    *CHECKPOINTS,
    *CLUSTER,
    *DEMO,
    *BERT,
    *FLAX,
    *EQUINOX,
    # pytest-xdist's groups have no effect on pytest 9.2.
    "pytest>=8,<9",
    "pytest-xdist>=3",
    "hypothesis>=6",
    "blackjax>=1.3",
    "mapie>=1.6",
    "dill>=0.3.8",
    "nbclient>=0.10",
    "ipykernel>=6",
]
DEV = ["ruff", "pyrefly", "import-linter", "build"]

setuptools.setup(
    name="enn",
    version=metadata["__version__"],
    description="Epistemic neural networks in JAX: networks that know what they "
    "don't know",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=setuptools.find_packages(include=["enn", "enn.*"]),
    package_data={"enn": ["py.typed"]},
    python_requires=">=3.11",
    install_requires=[
        "jax>=0.10",
        "jaxlib>=0.10",
        "dm-haiku>=0.0.16",
        "optax>=0.2.5",
        "chex>=0.1.90",
        "numpy>=1.26",
        "scipy>=1.13",  # JAX needs it too.
        "tqdm>=4.66",
    ],
    extras_require={
        "plots": PLOTS,
        "demo": DEMO,
        "bert": BERT,
        "flax": FLAX,
        "equinox": EQUINOX,
        "datasets": DATASETS,
        "checkpoints": CHECKPOINTS,
        "cluster": CLUSTER,
        "test": TEST,
        "dev": DEV,
    },
    classifiers=[
        "Programming Language :: Python :: 3",
        "Intended Audience :: Science/Research",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
