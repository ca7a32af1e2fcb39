"""The script that counts rooms, arrows and aliases counts them right."""

import importlib.util
import json
import pathlib
import sys
from types import ModuleType

import pytest

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module")
def house() -> ModuleType:
    spec = importlib.util.spec_from_file_location("house", ROOT / "tools" / "house.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Where dataclasses look for the module of a class.
    sys.modules["house"] = module
    spec.loader.exec_module(module)
    return module


def _write(root: pathlib.Path, files: dict[str, str]) -> pathlib.Path:
    for name, text in files.items():
        file = root / "toy" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root


def test_rooms_and_arrows(house: ModuleType, tmp_path: pathlib.Path) -> None:
    files = {
        "__init__.py": "from toy.box import a, b\n",
        "box/__init__.py": "from toy.box.a import f\n",
        "box/a.py": "import toy.box.b\nimport toy.box.b\nf = 1\n",
        "box/b.py": "from toy.box import deep\nfrom toy import base\n",
        "box/deep/__init__.py": "from toy.box.deep import inner\n",
        "box/deep/inner.py": "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from toy.box import c\n"
        "def g():\n    from toy.box.a import f\n    from toy.box2 import b\n",
        "box/c.py": "from toy.box.deep.inner import g\n",
        "box2/b.py": "import toy.box.c\n",
    }
    folder = _write(tmp_path, files) / "toy" / "box"
    assert house.rooms(folder) == {"__init__", "a", "b", "c", "deep"}
    assert house.arrows(tmp_path, folder) == {
        ("__init__", "a"),
        ("a", "b"),
        ("b", "deep"),
        ("deep", "a"),
        ("deep", "c"),
        ("c", "deep"),
    }


def test_aliases(house: ModuleType, tmp_path: pathlib.Path) -> None:
    files = {
        "__init__.py": "from toy.a import f\n",
        "a.py": "import chex\nfrom toy import b\nfrom toy.b import g as h, k\n"
        "from typing import Any\n"
        "Array = chex.Array\nData: Any = Any\nm = b.k\nn = k\no = k(1)\n"
        "def f():\n    from toy.b import p\n    return p\n",
        "b.py": "g = k = lambda: 1\ndef p(): pass\n",
    }
    names = {
        "toy": ["f"],
        "toy.a": ["Array", "Data", "f", "h", "k", "m", "n", "o", "p"],
        "toy.b": ["g", "p"],
    }
    root = _write(tmp_path, files)
    assert house.aliases(root, names) == ["toy.a.h", "toy.a.k", "toy.a.m", "toy.a.n"]
    assert set(house.plain_modules(root, names)) == {"toy.a", "toy.b"}


def test_365_names_are_of_plain_modules(house: ModuleType) -> None:
    names = json.loads(house.NAMES.read_text())
    assert sum(map(len, house.plain_modules(ROOT, names).values())) == 365
