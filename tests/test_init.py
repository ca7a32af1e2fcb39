import pathlib
import subprocess
import sys

import pytest

import enn

ROOT = pathlib.Path(enn.__file__).parents[1]

IMPORT_ALL = """
import importlib, sys
import chex, haiku, jax, numpy, optax, tqdm

extras = set(sys.argv[1].split(",")) - set(sys.modules)
for module in sys.argv[2:]:
    importlib.import_module(module)
    loaded = sorted(extras & set(sys.modules))
    assert not loaded, f"{module} imports {loaded}"
"""

EXTRAS = [
    "datasets",
    "equinox",
    "flax",
    "grain",
    "jaxline",
    "matplotlib",
    "nbclient",
    "orbax",
    "pandas",
    "pooch",
    "rlax",
    "safetensors",
    "sklearn",
    "tensorflow",
    "tensorflow_datasets",
    "tensorflow_probability",
    "tokenizers",
    "torch",
    "transformers",
]


def _python(*args):
    command = [sys.executable, "-W", "ignore", "-c", *args]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _modules():
    for path in sorted((ROOT / "enn").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[-1] != "__main__":
            yield ".".join(parts).removesuffix(".__init__")


def test_importing_the_package_imports_no_other_package():
    before = "import enn, sys; print(*sys.modules)"
    assert not {"jax", "haiku", "numpy", "optax"} & set(_python(before).split())


def test_subpackages_load_as_attributes():
    code = "import enn; print(enn.networks.MLPEnsembleMatchedPrior.__module__)"
    assert _python(code).strip() == "enn.networks.ensembles"


@pytest.mark.parametrize("order", [sorted, lambda names: sorted(names)[::-1]])
def test_every_module_imports_without_the_extras(order):
    modules = order(_modules())
    assert {"enn", "enn.networks.epinet", "enn.checkpoints.base"} <= set(modules)
    _python(IMPORT_ALL, ",".join(EXTRAS), *modules)


def test_dir_lists_the_public_names_and_all_of_them_load():
    assert dir(enn) == sorted(enn.__all__)
    for name in enn.__all__:
        assert getattr(enn, name) is not None


def test_an_unknown_attribute_raises():
    with pytest.raises(AttributeError, match="module 'enn' has no attribute 'nets'"):
        enn.nets  # noqa: B018
