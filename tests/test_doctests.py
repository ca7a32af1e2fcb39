"""The examples in docstrings, each run alone, as by a reader who copies it."""

import doctest
import importlib
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[1]
FILES = sorted((ROOT / "enn").rglob("*.py"))
PUBLIC_MODULES = ("enn.base", "enn.loggers", "enn.sweeps", "enn.testing", "enn.utils")
"""Modules without `__all__`, whose own names without an underscore are public."""


def module_name(file: pathlib.Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = [module_name(file) for file in FILES if ">>> " in file.read_text()]


def examples(module: str) -> list[doctest.DocTest]:
    """Returns the examples of a module, none of which sees the module's names."""
    globs = {"__name__": "__main__"}
    found = doctest.DocTestFinder().find(importlib.import_module(module), globs=globs)
    return [test for test in found if test.examples]


@pytest.mark.parametrize("module", MODULES)
def test_examples_print_what_they_say(
    module: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # Some write files.
    # An ellipsis ends long errors.
    runner = doctest.DocTestRunner(verbose=False, optionflags=doctest.ELLIPSIS)
    report: list[str] = []
    for example in examples(module):
        runner.run(example, out=report.append)
    if report:
        pytest.fail("".join(report), pytrace=False)


def public_names() -> set[str]:
    """Returns the names that packages export, each by the module that defines it."""
    packages = [module_name(file) for file in FILES if file.name == "__init__.py"]
    exported = {m: getattr(importlib.import_module(m), "__all__", ()) for m in packages}
    for path in PUBLIC_MODULES:
        own = vars(importlib.import_module(path))
        exported[path] = [name for name in own if not name.startswith("_")]
    names = set()
    for path, own in exported.items():
        module = importlib.import_module(path)
        for name in own:
            value = getattr(module, name)
            home = str(getattr(value, "__module__", ""))
            if home.startswith("enn.") and hasattr(value, "__qualname__"):
                names.add(f"{home}.{value.__qualname__}")
    return names


def test_what_a_first_user_meets_has_examples() -> None:
    shown = {test.name for module in MODULES for test in examples(module)}
    without = sorted(public_names() - shown)
    assert len(public_names() & shown) >= 305, f"Names without examples: {without}"
