"""Pages of the API reference: every public name, from the docstrings.

A public name is one that a package lists in `__all__`, or a name of the original `enn`
(tests/public_names.json) that only a module has. Pages are written before each build;
after it, a name that is on no page is a warning.
"""

import importlib
import inspect
import json
import pathlib
import re
import textwrap
from typing import Any

from sphinx.application import Sphinx
from sphinx.util import logging

ROOT = pathlib.Path(__file__).parents[2]
ORIGINAL_NAMES: dict[str, Any] = json.loads(
    (ROOT / "tests" / "public_names.json").read_text()
)
SUBPACKAGES = {
    "networks": ["epinet", "last_layer", "bert"],
}

PAGE = """# {title}

```{{eval-rst}}
{directives}
```
"""

LITERAL = re.compile(r"(`+)(.+?)\1", re.DOTALL)


def packages() -> dict[str, list[str]]:
    """Returns the packages of each page, by the page's name."""
    import enn

    names = [name for name in enn.__all__ if not name.startswith("_")]
    return {
        name: [
            f"enn.{name}",
            *(f"enn.{name}.{below}" for below in SUBPACKAGES.get(name, ())),
        ]
        for name in names
    }


def own_names(path: str) -> list[str]:
    """Returns the public names of a module: `__all__`, or what it defines."""
    module = importlib.import_module(path)
    listed = getattr(module, "__all__", None)
    if listed is None:
        listed = [
            name
            for name, value in vars(module).items()
            if not name.startswith("_") and getattr(value, "__module__", None) == path
        ]
    is_module = type(importlib)
    return [name for name in listed if not isinstance(getattr(module, name), is_module)]


def public_names() -> dict[str, dict[str, list[str]]]:
    """Returns page -> module -> names, each object once."""
    pages, seen = {}, set()
    for page, paths in packages().items():
        modules = {path: own_names(path) for path in paths}
        for path in ORIGINAL_NAMES:
            if path.split(".")[1] == page:
                modules.setdefault(path, []).extend(ORIGINAL_NAMES[path])
        pages[page] = {}
        for path, names in modules.items():
            module = importlib.import_module(path)
            new = []
            for name in names:
                value = getattr(module, name)
                if id(value) not in seen:
                    seen.add(id(value))
                    new.append(name)
            if new or path in paths:
                pages[page][path] = new
    return pages


def write_pages(app: Sphinx) -> None:
    """Writes a page for each package into docs/api, where it has changed."""
    folder = pathlib.Path(app.srcdir) / "api"
    folder.mkdir(exist_ok=True)
    pages = public_names()
    texts = {"original_names": _original_names(pages)}
    for page, modules in pages.items():
        directives = []
        for path, names in modules.items():
            directives += _directives(path, names)
        texts[page] = PAGE.format(title=f"enn.{page}", directives="\n".join(directives))
    for page, text in texts.items():
        file = folder / f"{page}.md"
        if not file.exists() or file.read_text() != text:
            file.write_text(text)


def _original_names(pages: dict[str, dict[str, list[str]]]) -> str:
    """Returns a page that links every name of the original to what it is here."""
    targets = {
        id(getattr(importlib.import_module(path), name)): f"{path}.{name}"
        for modules in pages.values()
        for path, names in modules.items()
        for name in names
    }
    count = sum(map(len, ORIGINAL_NAMES.values()))
    lines = ["# Names of the original `enn`", ""]
    lines += [f"All {count} public names of `enn` 0.1.0 are where they were.", ""]
    lines += ["| module | name | in this reference |", "|---|---|---|"]
    for module, names in ORIGINAL_NAMES.items():
        for name in names:
            target = targets[id(getattr(importlib.import_module(module), name))]
            lines += [f"| `{module}` | `{name}` | {{py:obj}}`{target}` |"]
    return "\n".join([*lines, ""])


def _directives(path: str, names: list[str]) -> list[str]:
    """Returns what documents a module: classes and functions, then data."""
    module = importlib.import_module(path)
    values = {name: getattr(module, name) for name in names}
    members = [
        name
        for name, value in values.items()
        if inspect.isclass(value) or inspect.isroutine(value)
    ]
    lines = [f".. automodule:: {path}"]
    if members:
        options = ("imported-members", "undoc-members", "show-inheritance")
        lines += [f"   :members: {', '.join(members)}"]
        lines += [f"   :{option}:" for option in options]
    for name in names:
        if name not in members:
            lines += ["", f".. autodata:: {path}.{name}"]
    return [*lines, ""]


def to_restructured_text(
    app: Sphinx, what: str, name: str, value: Any, options: Any, lines: list[str]
) -> None:
    """Makes of a docstring, plain text with backticks, what Sphinx reads as that."""
    if what == "data" and lines and lines[0] in (inspect.getdoc(value) or ""):
        lines.clear()  # Of the type of the value, a dict or a str.
    paragraphs = "\n".join(lines).split("\n\n")
    lines[:] = "\n\n".join(map(_escape_paragraph, paragraphs)).split("\n")


def _escape_paragraph(text: str) -> str:
    if text.lstrip().startswith(">>>"):
        return text
    if text.startswith(("    ", "| ")):  # Code, a formula on its own lines, or a table.
        return "::\n\n" + textwrap.indent(text, "    ")
    parts, end = [], 0
    for match in LITERAL.finditer(text):
        parts.append(_escape_text(text[end : match.start()]))
        is_name = re.fullmatch(r"[A-Za-z_][\w.]*", match[2])
        parts.append(f":py:obj:`{match[2]}`" if is_name else f"``{match[2]}``")
        end = match.end()
        if text[end : end + 1].isalnum():  # As in `ArrayBatch`es.
            parts.append("\\ ")
    return "".join([*parts, _escape_text(text[end:])])


def _escape_text(text: str) -> str:
    return re.sub(r"([*|])|(?<=\w)(_)(?!\w)", r"\\\g<0>", text)


def check(app: Sphinx, env: Any) -> None:
    """Warns of public names that are on no page."""
    documented = env.get_domain("py").objects
    for modules in public_names().values():
        for path, names in modules.items():
            for name in names:
                if f"{path}.{name}" not in documented:
                    logging.getLogger(__name__).warning(
                        "%s.%s is not in the reference", path, name
                    )


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("builder-inited", write_pages)
    app.connect("autodoc-process-docstring", to_restructured_text, priority=100)
    app.connect("env-check-consistency", check)
    return {"parallel_read_safe": True}
