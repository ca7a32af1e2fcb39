"""The notebooks run from top to bottom in a clean kernel, and show what they say."""

import pathlib
import re
import sys
import types

import nbclient
import nbformat
import pytest
from IPython.core.interactiveshell import InteractiveShell

pytestmark = pytest.mark.slow

COLABS = pathlib.Path(__file__).parents[1] / "colabs"


def _run(name: str) -> nbformat.NotebookNode:
    """Executes a copy of a notebook, whose stored outputs are dropped first."""
    notebook = nbformat.read(COLABS / f"{name}.ipynb", as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    strict = "import warnings\nwarnings.simplefilter('error')"
    notebook.cells.insert(0, nbformat.v4.new_code_cell(strict))
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    return notebook  # pyrefly: ignore[bad-return]


def _text(notebook: nbformat.NotebookNode) -> str:
    """All that the notebook prints and displays as text."""
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    return "\n".join(
        out.get("text") or out.get("data", {}).get("text/plain", "") for out in outputs
    )


def _num_pictures(notebook: nbformat.NotebookNode) -> int:
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    return sum("image/png" in out.get("data", {}) for out in outputs)


def _row(text: str, name: str) -> list[float]:
    """The numbers of the first row of a table that `name` starts or stands in."""
    row = re.search(rf"^\s*(?:\d+\s+)?{name}((?:\s+[\d.]+)+)\s*$", text, re.MULTILINE)
    return [float(number) for number in row[1].split()]


@pytest.fixture(autouse=True)
def _quiet_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    # Its notes on how the kernel is reached are no warnings of ours.
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")


def test_enn_demo() -> None:
    notebook = _run("enn_demo")
    text = _text(notebook)
    # The original's notebook has this loss at step 100.
    rows = re.findall(r"Loss = ([\d.]+).*Step = (\d+)", text)
    assert len(rows) == 20
    assert float(rows[0][0]) == pytest.approx(0.52843, abs=2e-3)
    assert rows[0][1] == "100"
    # Two tosses of either coin: 2 ln 2 and ln 2 nats.
    assert _row(text, "fair") == [0.693, 1.386]
    assert _row(text, "unknown") == [0.693, 0.693]
    first, last = _row(text, "32"), _row(text, "96")
    assert first[0] == first[1]
    assert min(last) > first[0]
    assert _num_pictures(notebook) == 4


def test_epinet_demo() -> None:
    notebook = _run("epinet_demo")
    text = _text(notebook)
    assert "(1, 1017, 10)" in text
    assert "(100, 1017, 10)" in text
    base, epinet = _row(text, "base"), _row(text, "epinet")
    assert base[0] > 0.9
    assert epinet[0] > 0.9
    assert epinet[2] < base[2]
    assert float(re.search(r"AUROC: ([\d.]+)", text)[1]) > 0.8
    assert _num_pictures(notebook) == 2


def test_joint_predictions() -> None:
    notebook = _run("joint_predictions")
    rows = re.findall(r"(\w+)_inputs, d = (\d+)((?:\s+[\d.]+){5})", _text(notebook))
    last = {(kind, int(dim)): float(row.split()[-1]) for kind, dim, row in rows}
    assert len(last) == 6
    # At tau = 20: Bayes is told from the marginal agent by two inputs in any dimension.
    assert last["random", 2] < 0.5 < 0.9 < last["random", 100]
    assert max(last["dyadic", dim] for dim in (2, 10, 100)) < 0.5
    # One input tells nothing.
    assert all(row.split()[0] == "1.00" for _, _, row in rows)
    assert _num_pictures(notebook) == 1


def test_testbed_demo() -> None:
    notebook = _run("testbed_demo")
    text = _text(notebook)
    assert "10 data in 2 dimensions, tau = 10" in text
    # The uniform baseline has a closed form.
    uniform = float(re.search(r"uniform +KL ([\d.]+)", text)[1])
    assert uniform == pytest.approx(4.006, abs=1e-3)
    mlp, ensemble = _row(text, "mlp"), _row(text, r"ensemble\+")
    assert mlp[0] < uniform
    assert ensemble[1] == pytest.approx(mlp[1], abs=0.05)
    assert float(re.search(r"own: KL ([\d.]+)", text)[1]) < uniform
    assert _num_pictures(notebook) == 2


@pytest.mark.parametrize(
    ("name", "extras"),
    [
        ("enn_demo", "demo"),
        ("epinet_demo", "demo,checkpoints"),
        ("joint_predictions", "demo"),
        ("testbed_demo", "plots"),
    ],
)
def test_first_cell_installs_from_git_on_colab_and_nothing_elsewhere(
    name: str, extras: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    notebook = nbformat.read(COLABS / f"{name}.ipynb", as_version=4)
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    shell, installs = InteractiveShell(), []
    shell.register_magic_function(installs.append, magic_name="pip")
    shell.run_cell(first.source).raise_error()
    assert not installs
    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    shell.run_cell(first.source).raise_error()
    repository = shell.user_ns["REPOSITORY"]
    assert installs == [f'install --quiet "enn[{extras}] @ git+{repository}"']


@pytest.mark.parametrize(
    "name", ["enn_demo", "epinet_demo", "joint_predictions", "testbed_demo"]
)
def test_stored_notebook_is_small_has_run_in_order_and_without_errors(
    name: str,
) -> None:
    path = COLABS / f"{name}.ipynb"
    assert path.stat().st_size < 400_000
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not code[0].outputs
    for cell in code:
        assert not any(out.output_type == "error" for out in cell.outputs)
