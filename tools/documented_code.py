"""Writes the Python code of the documents into files, for type checkers to read.

Of each Markdown file the blocks marked `python`, which run one after the other, and of
each notebook the code cells become one file in the folder that is given.
"""

import json
import pathlib
import re
import sys
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).parents[1]


def documents(root: pathlib.Path) -> list[pathlib.Path]:
    """Returns the Markdown files and the notebooks that hold code."""
    pages = root.glob("docs/**/*.md")
    return [
        *root.glob("*.md"),
        *sorted(page for page in pages if "_build" not in page.parts),
        *sorted(root.glob("colabs/*.ipynb")),
    ]


def blocks(file: pathlib.Path) -> Iterator[str]:
    """Yields the Python code of a document, piece by piece."""
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".md":
        yield from re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
        return
    for cell in json.loads(text)["cells"]:
        if cell["cell_type"] == "code":
            # Commands of IPython are not Python.
            yield re.sub(r"^( *)[%!].*", r"\1pass", "".join(cell["source"]), flags=re.M)


def main(folder: pathlib.Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for document in documents(ROOT):
        if code := "\n\n".join(blocks(document)):
            path = document.relative_to(ROOT).with_suffix("")
            (folder / ("_".join(path.parts) + ".py")).write_text(code, encoding="utf-8")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
