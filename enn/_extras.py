"""Packages that an extra installs, imported where they are used."""

import importlib
from typing import Any


def require(module: str, extra: str) -> Any:
    """Returns the imported `module`.

    Raises:
      ImportError: where it does not import, naming the extra that installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise ImportError(
            f'This needs {package}: pip install "enn[{extra}]" ({error})'
        ) from error
