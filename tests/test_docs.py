"""Every Python block of the README and of the pages of docs runs as written."""

import json
import pathlib
import re

import numpy as np
import pytest

from tools import documented_code

ROOT = pathlib.Path(__file__).parents[1]
PAGES = sorted(  # Not those that docs/build.sh writes.
    str(page.relative_to(ROOT))
    for folder in ("docs", "docs/howto", "docs/methods")
    for page in (ROOT / folder).glob("*.md")
)
# Pages whose blocks run in less than two seconds.
QUICK = {"docs/install.md", "docs/howto/sweep.md", "docs/joint_predictions.md"}


def _blocks(page: str) -> list[str]:
    blocks = documented_code.blocks(ROOT / page)
    # What is for several processes runs in those of `supervised.test_mesh`.
    return [block for block in blocks if "jax.distributed" not in block]


def test_readme_blocks_run_as_written(capsys: pytest.CaptureFixture[str]) -> None:
    first, *others = _blocks("README.md")
    namespace: dict[str, object] = {}
    exec(first, namespace)
    rows = capsys.readouterr().out.splitlines()
    assert len(rows) == 1000
    assert rows[0].startswith("[Supervised Regression] Dataset = train | Loss = ")
    losses = [float(re.search(r"Loss = ([0-9.]+)", row)[1]) for row in rows]
    # Steps 1, 2, 3, 10 and 100 of the original `enn`, where dummy_input was given.
    np.testing.assert_allclose(
        [losses[step - 1] for step in (1, 2, 3, 10, 100)],
        [1.39911, 1.36345, 1.37743, 0.95356, 0.42649],
        atol=2e-3,
    )
    assert len(others) == 1
    exec(others[0], namespace)


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=() if page in QUICK else pytest.mark.slow)
        for page in PAGES
        if _blocks(page)
    ],
)
def test_blocks_of_a_page_run_as_written(
    page: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    for block in _blocks(page):
        exec(block, namespace)


def test_pages_show_only_files_that_exist() -> None:
    for page in PAGES:
        path = ROOT / page
        for name in re.findall(r"```\{literalinclude\} (\S+)", path.read_text()):
            assert (path.parent / name).exists(), f"{page}: {name}"


def test_every_method_has_a_small_picture() -> None:
    folder = ROOT / "docs" / "methods"
    for page in folder.glob("*.md"):
        if page.stem != "index":
            shown = re.findall(r"!\[([^]]+)\]\((\w+\.png)\)", page.read_text())
            assert f"{page.stem}.png" in [file for _, file in shown], page.name
            assert (folder / f"{page.stem}.png").stat().st_size <= 60_000


def test_code_of_a_notebook_comes_without_the_commands_of_ipython(
    tmp_path: pathlib.Path,
) -> None:
    cells = [
        {"cell_type": "markdown", "source": ["```python\n", "text\n", "```"]},
        {"cell_type": "code", "source": ["if colab:\n", "    %pip install enn\n"]},
        {"cell_type": "code", "source": ["!ls\n", "x = 3 % 2"]},
    ]
    notebook = tmp_path / "demo.ipynb"
    notebook.write_text(json.dumps({"cells": cells}))
    first, second = documented_code.blocks(notebook)
    assert first == "if colab:\n    pass\n"
    assert second == "pass\nx = 3 % 2"
