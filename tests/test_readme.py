"""Every Python block of the README runs as written, one after the other."""

import pathlib
import re

import numpy as np
import pytest

README = pathlib.Path(__file__).parents[1] / "README.md"


def test_readme_blocks_run_as_written(
    capsys: pytest.CaptureFixture[str],
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    # What is for several processes runs in those of `supervised.test_mesh`.
    blocks = [block for block in blocks if "jax.distributed" not in block]
    assert len(blocks) == 9
    namespace: dict[str, object] = {}
    exec(blocks[0], namespace)
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
    for block in blocks[1:]:
        exec(block, namespace)
