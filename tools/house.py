"""Counts how the code is cut up, and fails where that is too finely or too tangled.

A room is a file or a subpackage at the top level of a folder, `__init__` among them; an
arrow is a pair of rooms of which one imports the other, wherever the import stands. An
alias is a public name of the original that a module takes from another one of the
library instead of defining it.
"""

import ast
import dataclasses
import json
import pathlib
import sys
from collections.abc import Iterator, Mapping, Sequence

ROOT = pathlib.Path(__file__).parents[1]
NAMES = ROOT / "tests" / "public_names.json"


@dataclasses.dataclass(frozen=True)
class Figure:
    """What is counted, how much of it there is, and the most that there may be."""

    what: str
    count: int
    most: int
    details: Sequence[str] = ()

    def __str__(self) -> str:
        return f"{self.what}: {self.count}, at most {self.most}"


def rooms(folder: pathlib.Path) -> set[str]:
    """Returns the names of the rooms of `folder`, a package."""
    packages = {file.parent.name for file in folder.glob("*/__init__.py")}
    return packages | {file.stem for file in folder.glob("*.py")}


def arrows(root: pathlib.Path, folder: pathlib.Path) -> set[tuple[str, str]]:
    """Returns the pairs (room, room that it imports) of `folder`, below `root`."""
    package = ".".join(folder.relative_to(root).parts)
    names = rooms(folder)
    pairs = set()
    for file in folder.rglob("*.py"):
        room = file.relative_to(folder).parts[0].removesuffix(".py")
        imported = _imported_below(package, ast.parse(file.read_text()))
        pairs |= {(room, name) for name in imported if name in names - {room}}
    return pairs


def _imported_below(package: str, tree: ast.Module) -> Iterator[str]:
    """Yields the first part of each path below `package` that `tree` imports."""
    prefix = f"{package}."
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            paths = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            paths = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for path in paths:
            if path.startswith(prefix):
                yield path.removeprefix(prefix).partition(".")[0]


def plain_modules(
    root: pathlib.Path, public_names: Mapping[str, Sequence[str]]
) -> dict[str, Sequence[str]]:
    """Returns the part of `public_names` that is of plain modules, not of packages."""
    return {k: v for k, v in public_names.items() if _file(root, k).exists()}


def aliases(root: pathlib.Path, public_names: Mapping[str, Sequence[str]]) -> list[str]:
    """Returns the aliases among the names of plain modules, as `module.name`."""
    found = []
    for module, names in plain_modules(root, public_names).items():
        tree = ast.parse(_file(root, module).read_text())
        taken = _taken_from(module.partition(".")[0], tree)
        found += [f"{module}.{name}" for name in names if name in taken]
    return found


def _file(root: pathlib.Path, module: str) -> pathlib.Path:
    return root.joinpath(*module.split(".")).with_suffix(".py")


def _taken_from(package: str, tree: ast.Module) -> set[str]:
    """Returns the names that a module imports from `package`, or assigns from such."""
    taken = set()
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            if f"{node.module}.".startswith(f"{package}."):
                taken |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            source: ast.expr | None = node.value
            while isinstance(source, ast.Attribute):
                source = source.value
            if isinstance(source, ast.Name) and source.id in taken:
                targets = (
                    node.targets if isinstance(node, ast.Assign) else [node.target]
                )
                taken |= {t.id for t in targets if isinstance(t, ast.Name)}
    return taken


def figures(root: pathlib.Path) -> list[Figure]:
    """Returns all figures of the library that lies in `root`."""
    found = []
    for name, most_rooms, most_arrows in (("networks", 28, 111), ("losses", 9, 15)):
        folder = root / "enn" / name
        found += [
            Figure(f"rooms in enn/{name}", len(rooms(folder)), most_rooms),
            Figure(f"arrows in enn/{name}", len(arrows(root, folder)), most_arrows),
        ]
    lines = {
        str(file.relative_to(root)): len(file.read_text().splitlines())
        for file in sorted((root / "enn").rglob("*.py"))
    }
    short = [
        file
        for file, count in lines.items()
        if count <= 25 and not file.endswith("__init__.py")
    ]
    longest = max(lines, key=lines.__getitem__)
    taken = aliases(root, json.loads(NAMES.read_text()))
    return [
        *found,
        Figure("files of at most 25 lines", len(short), 8, short),
        Figure("lines of the longest file", lines[longest], 560, [longest]),
        Figure("aliases of the original's names", len(taken), 35, taken),
    ]


def main() -> None:
    too_many = False
    for figure in figures(ROOT):
        print(figure)
        if figure.count > figure.most:
            too_many = True
            print("  TOO MANY", *figure.details, sep="\n    ")
    sys.exit(too_many)


if __name__ == "__main__":
    main()
