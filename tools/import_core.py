"""Imports every module of the installed package and checks what that pulled in.

Run where only the core dependencies are installed: no module may need an extra to be
imported.
"""

import importlib
import pkgutil
import sys

import enn

EXTRAS = {
    "datasets",
    "equinox",
    "flax",
    "grain",
    "huggingface_hub",
    "matplotlib",
    "mlflow",
    "orbax",
    "pandas",
    "pooch",
    "safetensors",
    "sklearn",
    "tensorboardX",
    "tokenizers",
    "torch",
    "trackio",
    "transformers",
    "wandb",
}

names = [
    module.name
    for module in pkgutil.walk_packages(enn.__path__, "enn.")
    if not module.name.endswith("__main__")
]
for name in names:
    importlib.import_module(name)
pulled = EXTRAS & set(sys.modules)
if pulled:
    sys.exit(f"importing the core pulled in {sorted(pulled)}")
print(f"{len(names)} modules import with core dependencies only")
