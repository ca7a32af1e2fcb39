"""The command runs agents on problems, resumes, ranks, and tells what cannot be."""

import jax.numpy as jnp
import numpy as np
import pytest

from enn.testbed import command

UNIFORM = "baseline:uniform_class_probs"


def make_constant(logit=0.0):
    """An agent of a user's own."""

    def agent(data, prior):
        return lambda x, key: jnp.tile(jnp.array([[0.0, logit]]), (len(x), 1))

    return agent


def _run(*arguments):
    command.main(["run", *map(str, arguments)])


@pytest.mark.slow
def test_a_sweep_is_run_resumed_and_ranked(tmp_path, capsys, monkeypatch):
    sweep = ["--sweep", "classification_2d_test", "--out", tmp_path, "--taus", 1]
    _run("--agent", UNIFORM, *sweep)
    frame = command.results_frame(str(tmp_path))
    assert len(frame) == 7
    # The uniform baseline of the specification at tau 1.
    one = frame.sort_values("seed")
    expected = [0.678335, 0.690958, 0.665333, 0.656264, 0.693148, 0.687745, 0.686804]
    np.testing.assert_allclose(one.kl_estimate, expected, atol=1e-6)

    own = "tests.testbed.test_command:make_constant"
    problem = ["--problem", "classification_2d_test/3", "--out", tmp_path]
    _run("--agent", own, "--option", "logit=1.0", *problem)
    assert len(command.results_frame(str(tmp_path))) == 9
    capsys.readouterr()
    monkeypatch.setattr(command, "run_task", None)  # All files are there.
    _run("--agent", UNIFORM, *sweep)
    command.main(["rank", str(tmp_path), "--normalize-by", UNIFORM])
    table = capsys.readouterr().out
    assert f"tau 1, KL divergence of {UNIFORM} = 1" in table
    assert own + '{"logit": 1.0}' in table
    picture = tmp_path / "ranking.png"
    command.main(["plot", str(tmp_path), "--out", str(picture)])
    assert picture.stat().st_size > 1000


@pytest.mark.slow
def test_large_tau_is_exact(tmp_path):
    _run(
        "--agent", UNIFORM, "--problem", "classification_2d/75", "--taus", 100,
        "--out", tmp_path,
    )  # fmt: skip
    frame = command.results_frame(str(tmp_path))
    np.testing.assert_allclose(frame.kl_estimate, 40, atol=4)
    assert frame.kl_estimate_std[0] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--agent", "epinett"], "Unknown agent 'epinett'; similar ones are epinet"),
        (["--agent", "mlp", "--option", "seeds=1"], "no option 'seeds'"),
        (["--agent", "mlp", "--option", "seed"], "NAME=VALUE, got 'seed'"),
        (["--agent", "nowhere:f"], "There is no agent 'nowhere:f'"),
        (["--agent", "mlp", "--sweep", "clasification_2d"], "classification_2d"),
        (["--agent", "mlp", "--problem", "classification_2d/999"], "Unknown problem"),
    ],
)
def test_bad_input_ends_in_one_line(arguments, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as error:
        _run(*arguments, "--out", tmp_path)
    assert error.value.code == 2
    line = capsys.readouterr().err
    assert message in line
    assert line.count("\n") == 1


@pytest.mark.slow
def test_two_streams_do_not_mix(tmp_path):
    problem = ["--problem", "classification_2d/0", "--taus", 1, "--out", tmp_path]
    _run("--agent", UNIFORM, *problem)
    with pytest.raises(SystemExit):
        _run("--agent", UNIFORM, "--stream", "published", *problem)
    with pytest.raises(ValueError, match="mixes results of two random streams"):
        command.results_frame(str(tmp_path))


def test_agents_and_sweeps_are_listed(capsys):
    command.main(["list"])
    listed = capsys.readouterr().out
    assert "sgmcmc" in listed
    assert "classification_2d (420)" in listed


def test_programs_of_more_than_768_mib_are_forgotten(monkeypatch):
    most = 3e8 + 3 * 2**28
    held = iter([3e8, 3e8, most, 2e9, most, 2e9, 2e9, 4e8])
    cleared = []
    monkeypatch.setattr(command, "_bytes_of_process", lambda: next(held))
    monkeypatch.setattr(command.jax, "clear_caches", lambda: cleared.append(1))
    memory = command._Memory()
    memory.bound()  # The first call sets the start, 3e8.
    memory.bound()  # 768 MiB more, no more than that.
    memory.bound()  # Above it, but not once holes are given back.
    assert not cleared
    memory.bound()  # Above it all the same; 4e8 are left.
    assert cleared == [1]
