import pathlib
import subprocess
import sys

import pytest

import enn

ROOT = pathlib.Path(enn.__file__).parents[1]

IMPORT_EACH_FIRST = """
import importlib, os, sys, traceback
import chex, haiku, jax, numpy, optax, tqdm

extras = set(sys.argv[1].split(",")) - set(sys.modules)

def import_first(module):
    try:
        importlib.import_module(module)
        loaded = sorted(extras & set(sys.modules))
        assert not loaded, f"{module} imports {loaded}"
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)

modules, failed = sys.argv[2:], False
while modules:
    children = []
    for module in modules[:8]:
        children.append(os.fork())
        if not children[-1]:
            import_first(module)
    del modules[:8]
    failed |= any([os.waitpid(child, 0)[1] for child in children])
sys.exit(failed)
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


def test_every_module_imports_first_and_without_the_extras():
    modules = list(_modules())
    assert {"enn", "enn.networks.epinet", "enn.checkpoints.base"} <= set(modules)
    _python(IMPORT_EACH_FIRST, ",".join(EXTRAS), *modules)


def test_dir_lists_the_public_names_and_all_of_them_load():
    assert dir(enn) == sorted(enn.__all__)
    for name in enn.__all__:
        assert getattr(enn, name) is not None


def test_an_unknown_attribute_raises():
    with pytest.raises(AttributeError, match="module 'enn' has no attribute 'nets'"):
        enn.nets  # noqa: B018
