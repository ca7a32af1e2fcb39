import importlib
import json
import pathlib
import subprocess
import sys

import pytest

import enn

ROOT = pathlib.Path(enn.__file__).parents[1]

PACKAGES = sorted(f"enn.{file.parent.name}" for file in ROOT.glob("enn/*/__init__.py"))
PACKAGES.remove("enn.demo")  # A program.

# Imports modules in each of the orders, into an interpreter that has none of them.
IMPORT_ALL = """
import importlib, json, sys
import chex, haiku, jax, numpy, optax, tqdm

extras = set(json.loads(sys.argv[1])) - set(sys.modules)
for order in json.loads(sys.argv[2]):
    for module in [name for name in sys.modules if name.partition(".")[0] == "enn"]:
        del sys.modules[module]
    for module in order:
        importlib.import_module(module)
        loaded = sorted(extras & set(sys.modules))
        assert not loaded, f"{module} imports {loaded}"
"""

EXTRAS = [
    "dask",
    "datasets",
    "distributed",
    "equinox",
    "flax",
    "grain",
    "huggingface_hub",
    "jaxline",
    "matplotlib",
    "mlflow",
    "nbclient",
    "orbax",
    "pandas",
    "pooch",
    "rlax",
    "safetensors",
    "sklearn",
    "tensorboardX",
    "tensorflow",
    "tensorflow_datasets",
    "tensorflow_probability",
    "tokenizers",
    "torch",
    "trackio",
    "transformers",
    "wandb",
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
    code = "import enn; print(enn.loggers.TerminalLogger.__module__)"
    assert _python(code).strip() == "enn.loggers"


@pytest.mark.slow
def test_modules_import_in_any_order_without_the_extras():
    modules = sorted(_modules())
    assert {"enn", "enn.networks.epinet", "enn.checkpoints.base"} <= set(modules)
    # Once, a cycle through enn.networks made the last of these fail.
    orders = [modules, modules[::-1], ["enn.checkpoints.epinet"]]
    _python(IMPORT_ALL, json.dumps(EXTRAS), json.dumps(orders))


def test_dir_lists_the_public_names_and_all_of_them_load():
    assert dir(enn) == sorted(enn.__all__)
    for name in enn.__all__:
        assert getattr(enn, name) is not None


@pytest.mark.parametrize("name", PACKAGES)
def test_dir_of_a_package_lists_what_users_are_meant_to_use(name):
    package = importlib.import_module(name)
    assert dir(package) == sorted(package.__all__)


def test_an_unknown_attribute_raises():
    with pytest.raises(AttributeError, match="module 'enn' has no attribute 'nets'"):
        enn.nets  # noqa: B018
