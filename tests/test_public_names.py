"""Every public name of the original `enn` is where it was, with its parameters."""

import enum
import importlib
import inspect
import json
import pathlib
from typing import Any

import pytest

# Module -> name -> parameters in order, members of an Enum, or null for what has no
# signature. Parameters with defaults may follow.
FILE = pathlib.Path(__file__).parent / "public_names.json"
MODULES: dict[str, dict[str, Any]] = json.loads(FILE.read_text())


def test_the_list_is_whole() -> None:
    assert sum(map(len, MODULES.values())) == 587
    assert {name.split(".")[1] for name in MODULES} >= {
        "checkpoints",
        "data_noise",
        "datasets",
        "losses",
        "metrics",
        "networks",
        "supervised",
    }


@pytest.mark.parametrize("module", MODULES)
def test_public_names(module: str) -> None:
    imported = importlib.import_module(module)
    for name, expected in MODULES[module].items():
        value = getattr(imported, name)
        if isinstance(expected, dict):
            assert issubclass(value, enum.Enum)
            assert list(value.__members__) == expected["members"], name
        elif expected is not None:
            assert callable(value)
            _check_parameters(name, value, expected)


def _check_parameters(name: str, value: Any, expected: list[str]) -> None:
    parameters = list(inspect.signature(value).parameters.values())
    if parameters and parameters[0].name == "self":
        del parameters[0]
    if any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters):
        return
    assert [p.name for p in parameters[: len(expected)]] == expected, name
    assert all(p.default is not p.empty for p in parameters[len(expected) :]), name
