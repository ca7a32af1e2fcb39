"""The demo as a user runs it, with few training steps."""

import pathlib
import subprocess
import sys

import numpy as np
import pytest

from enn.datasets.base import ArrayBatch
from enn.demo import __main__ as demo
from enn.demo import agents, digits, posteriors
from enn.supervised.base import sample_predictions

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")


def run(out: pathlib.Path, *arguments: str) -> None:
    demo.main(["--out", str(out), "--steps", "3", *arguments])


@pytest.mark.slow
@pytest.mark.parametrize("dataset", ["regression", "moons"])
def test_toy_data_give_a_picture_that_is_the_same_every_time(
    dataset: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("first", "second"):
        run(tmp_path / name, "--dataset", dataset, "--agents", "mlp")
        assert str(tmp_path / name / f"{dataset}.png") in capsys.readouterr().out
    first, second = (
        (tmp_path / name / f"{dataset}.png").read_bytes()
        for name in ("first", "second")
    )
    assert first.startswith(b"\x89PNG")
    assert first == second


@pytest.mark.slow
def test_digits_give_a_table_and_a_picture(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path, "--dataset", "digits", "--agents", "mlp", "epinet")
    output = capsys.readouterr()
    assert "3/3" in output.err
    header, mlp, epinet = (
        line
        for line in output.out.splitlines()
        if line.startswith(("agent ", "mlp ", "epinet "))
    )
    for column in ("parameters", "accuracy", "marginal NLL", "joint NLL", "AUROC"):
        assert column in header
    assert mlp.split()[-1] == "0.500"  # One prediction, no epistemic uncertainty.
    assert float(epinet.split()[-1]) != 0.5
    assert int(mlp.split()[1]) == 64 * 100 + 100 + 100 * 100 + 100 + 100 * 10 + 10
    assert (tmp_path / "digits.png").stat().st_size > 10_000


def test_the_unseen_digit_is_never_trained_on() -> None:
    data = digits.load_digits(seed=0)
    assert set(data.train.y.flat) == set(range(10)) - {digits.UNSEEN_DIGIT}
    assert set(data.seen.y.flat) == set(data.train.y.flat)
    assert set(data.unseen.y.flat) == {digits.UNSEEN_DIGIT}
    assert len(data.train.y) + len(data.seen.y) + len(data.unseen.y) == 1797
    rows = {row.tobytes() for row in data.train.x}
    assert not any(row.tobytes() in rows for row in data.seen.x)
    other = digits.load_digits(seed=1)
    assert not np.array_equal(other.train.x, data.train.x)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "cats"], "invalid choice: 'cats'"),
        (["--agents", "mlp", "bert"], "invalid choice: 'bert'"),
        (["--steps", "0"], "--steps: must be an integer >= 1, got '0'"),
        (["--seed", "x"], "--seed: must be an integer from 0 to 4294967295, got 'x'"),
        (["--steps", "--5"], "--steps: expected one argument"),
        (["--steps=--5"], "--steps: must be an integer >= 1, got '--5'"),
        (["--steps", "²"], "--steps: must be an integer >= 1, got '²'"),
        (["--seed", "4294967296"], "--seed: must be an integer from 0 to 4294967295"),
        (["--out", __file__], f"--out: cannot make the folder {__file__}: File exists"),
        (["--out", f"{__file__}/sub"], "--out: cannot make the folder"),
        (["--unknown"], "unrecognized arguments: --unknown"),
        (["--agents", "mlp", "vbll"], "--agents: vbll needs --dataset digits"),
        (
            ["--agents", "all", "--dataset", "digits", "--steps", "1"],
            "--steps: sghmc needs at least 2",
        ),
    ],
)
def test_bad_values_exit_2_with_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_info:
        demo.main(arguments)
    assert exit_info.value.code == 2
    output = capsys.readouterr()
    assert message in output.err
    assert output.err.count("\n") == 1
    assert output.out == ""


def test_the_command_line_offers_every_agent() -> None:
    assert tuple(agents.make_agents([], 1.0)) == demo.AGENTS
    assert tuple(posteriors.METHODS) == demo.POSTERIORS


@pytest.mark.slow
@pytest.mark.parametrize("name", demo.POSTERIORS)
def test_every_posterior_is_a_network_of_many_functions(name: str) -> None:
    data = digits.load_digits(seed=0)
    few = ArrayBatch(x=data.train.x[:40], y=data.train.y[:40])
    fitted = posteriors.fit(name, posteriors.Training(few, seed=0, steps=4))
    logits = np.asarray(sample_predictions(fitted, data.seen.x[:3], 5))
    assert logits.shape == (5, 3, 10)
    assert np.isfinite(logits).all()
    # Samples differ, but for the network that has only its temperature fitted.
    assert (logits.std(axis=0) > 0).all() == (name != "temperature")


@pytest.mark.slow
def test_a_posterior_has_a_row_like_the_others() -> None:
    data = digits.load_digits(seed=0)
    posterior, mlp = (digits.evaluate(n, data, 0, 3) for n in ("ensemble++", "mlp"))
    assert posterior.row.keys() == mlp.row.keys()
    assert posterior.row["parameters"] == 17610 + 2 * 100 * 10 * 8  # Its A and A₀.
    assert 1 <= posterior.row["99 % sets"] <= 10


def test_help_names_every_option() -> None:
    process = subprocess.run(
        [sys.executable, "-m", "enn.demo", "--help"], capture_output=True, text=True
    )
    assert process.returncode == 0
    for option in ("--out", "--seed", "--steps", "--agents", "--dataset"):
        assert option in process.stdout
    assert "regression,moons,digits,all" in process.stdout
    assert "mlp, ensemble, epinet" in process.stdout
    assert "multiswag" in process.stdout
