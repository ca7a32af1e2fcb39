"""The comparison with published results, on results that are made up."""

import itertools
import json
import math
import pathlib

import numpy as np
import pandas as pd
import pytest

from enn.testbed import command, reproduction
from enn.testbed.problems import CLASSIFICATION_2D, SETTINGS

WORLDS = CLASSIFICATION_2D[:210]
TABLES = pathlib.Path(__file__).parents[2] / "docs" / "testbed"
REPRODUCE = ["reproduce", "--workers", "1", "--out"]


def _kl(agent, problem_id, tau):
    config = SETTINGS[problem_id]
    kl = 0.5 + 0.1 * (config.seed % 10) + 1 / config.prior_knowledge.num_train
    return kl * tau * {"mlp": 1.0, "epinet": 0.5}[agent]


def _fake_task(task):
    ids, taus = task["problems"].split(), task["taus"].split()
    pairs = [(problem_id, int(tau)) for problem_id in ids for tau in taus]
    return {
        "problem": [problem_id for problem_id, _ in pairs],
        "tau": [tau for _, tau in pairs],
        "seed": [SETTINGS[problem_id].seed for problem_id, _ in pairs],
        "kl_estimate": [_kl(task["agent"], *pair) for pair in pairs],
        "pct_finite_kl": [1.0] * len(pairs),
        "train_seconds": [2.0] * len(pairs),
        "train_cpu_seconds": [4.0] * len(pairs),
        "evaluation_seconds": [1.0] * len(pairs),
        "evaluation_cpu_seconds": [1.5] * len(pairs),
    }


@pytest.mark.slow
def test_reproduction_is_run_resumed_and_drawn(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "run_task", _fake_task)
    arguments = [*REPRODUCE, str(tmp_path), "--agents", "mlp", "epinet"]
    command.main(arguments)
    table = pd.read_csv(tmp_path / "reproduction.csv")
    assert list(table.tau) == [1, 1, 10, 10, 100, 100]
    assert list(table.agent) == ["epinet", "mlp"] * 3
    np.testing.assert_allclose(table.normalized_kl, [0.5, 1.0] * 3, atol=1e-6)
    assert (table.num_problems == 210).all()
    assert list(table.published.fillna(0)) == [0, 0, 0, 1, 0, 1]
    # The ratio is the same in each group of seeds, while its parts differ.
    np.testing.assert_allclose(table.paired_stderr, 0, atol=1e-6)
    groups = 0.5 + 0.1 * np.arange(10)
    mean = groups.mean() + np.mean([1 / n for n in (1, 3, 10, 30, 100, 300, 1000)])
    expected = groups.std() / np.sqrt(10) / mean
    np.testing.assert_allclose(table.normalized_stderr[1], expected, atol=1e-6)
    assert (table.train_cpu_seconds == 4.0 * 210).all()
    assert (tmp_path / "reproduction.png").stat().st_size > 1000
    capsys.readouterr()

    def must_not_run(task):
        raise AssertionError(task)

    monkeypatch.setattr(command, "run_task", must_not_run)
    command.main(arguments)
    assert "epinet    1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("kl", "expected"), [([1.4, 0.6], 0.2), ([1.4], np.nan), ([1.4, np.inf], np.nan)]
)
def test_the_paired_error_is_that_of_residuals_over_groups_of_seeds(kl, expected):
    frame = pd.DataFrame({"kl_estimate": [2.0] * len(kl) + kl, "tau": 10})
    frame["seed"] = list(range(len(kl))) * 2
    frame["problem"] = [f"p{seed}" for seed in frame.seed]
    frame["agent_name"] = ["mlp"] * len(kl) + ["mine"] * len(kl)
    frame["pct_finite_kl"] = 1.0
    for column in ("train", "evaluation"):
        frame[f"{column}_seconds"] = frame[f"{column}_cpu_seconds"] = 1.0
    table = reproduction.compare(frame, 2).set_index("agent")
    # Two residuals, 1.4 - 0.5 * 2 and its opposite: their standard error is 0.4, and
    # the baseline's mean 2.
    np.testing.assert_allclose(table.paired_stderr["mine"], expected)


def test_what_failed_or_was_interrupted_leaves_a_table(tmp_path, monkeypatch):
    def failing(task):
        if task["agent"] == "epinet":
            raise KeyboardInterrupt
        return _fake_task(task)

    monkeypatch.setattr(command, "run_task", failing)
    monkeypatch.setattr(command, "_worlds", lambda *_: WORLDS[:30])
    agents = ["--agents", "epinet", "mlp", "--taus", "10"]
    with pytest.raises(KeyboardInterrupt):  # Before there is anything to draw.
        command.main([*REPRODUCE, str(tmp_path / "none"), *agents])
    assert not (tmp_path / "none" / "reproduction.csv").exists()
    agents[1:3] = ["mlp", "epinet"]
    with pytest.raises(KeyboardInterrupt):
        command.main([*REPRODUCE, str(tmp_path), *agents])
    assert list(pd.read_csv(tmp_path / "reproduction.csv").agent) == ["mlp"]


def test_an_unfinished_agent_is_compared_on_its_problems(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "run_task", _fake_task)
    run = ["run", "--out", str(tmp_path / "problems"), "--taus", "10", "--agent"]
    command.main([*run, "mlp"])
    # A problem with few data: the plain mean over those of mlp would be smaller.
    command.main([*run, "epinet", "--problem", WORLDS[0]])
    arguments = ["--taus", "10", "--agents", "mlp", "epinet", "--no-run"]
    command.main([*REPRODUCE, str(tmp_path), *arguments])
    table = pd.read_csv(tmp_path / "reproduction.csv").set_index("agent")
    assert table.num_problems["epinet"] == 1
    np.testing.assert_allclose(table.normalized_kl["epinet"], 0.5)


def test_agents_with_options_are_named_with_them(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "run_task", _fake_task)
    monkeypatch.setattr(command, "_worlds", lambda *_: WORLDS[:30])
    agents = ["--agents", "mlp", "epinet", 'epinet{"prior_scale": 1.0}', "--taus", "10"]
    command.main([*REPRODUCE, str(tmp_path), *agents])
    table = pd.read_csv(tmp_path / "reproduction.csv")
    names = {"mlp", "epinet", "epinet prior_scale=1.0"}
    assert set(table.agent) == names
    # The others' results stay in the folder, and out of another table of it.
    few = ["--agents", "epinet", "--taus", "10", "--no-run", "--name", "few"]
    command.main([*REPRODUCE, str(tmp_path), *few])
    assert set(pd.read_csv(tmp_path / "few.csv").agent) == {"mlp", "epinet"}
    assert (tmp_path / "few.md").read_text() == (
        "| agent | worlds | τ = 10 | published | training, s | 1000 functions, s |\n"
        "| --- | --- | --- | --- | --- | --- |\n"
        "| `epinet` | 30 | 0.500 ± 0.000 |  | 4 | 1.5 |\n"
        "| `mlp` | 30 | 1.000 | 1.000 | 4 | 1.5 |\n"
    )


def test_an_infinite_divergence_is_told_and_not_drawn(tmp_path, monkeypatch):
    def infinite(task):
        columns = _fake_task(task)
        if task["agent"] == "epinet":
            columns["kl_estimate"][0] = math.inf
        return columns

    monkeypatch.setattr(command, "run_task", infinite)
    monkeypatch.setattr(command, "_worlds", lambda *_: WORLDS[:30])
    agents = ["--agents", "mlp", "epinet", "--taus", "10"]
    command.main([*REPRODUCE, str(tmp_path), *agents])
    table = pd.read_csv(tmp_path / "reproduction.csv").set_index("agent")
    assert table.normalized_kl["epinet"] == math.inf
    assert "| `epinet` | 30 | inf |" in (tmp_path / "reproduction.md").read_text()


def test_options_that_are_no_json_are_told_in_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit):
        command.main([*REPRODUCE, str(tmp_path), "--agents", "mlp{x"])
    assert "is NAME{\"OPTION\": VALUE}, got 'mlp{x'" in capsys.readouterr().err


def test_a_shorter_chain_is_sgmcmc_all_the_same():
    assert reproduction.label("sgmcmc", {"num_batches": 1000}) == "sgmcmc"


def test_at_tau_1_nothing_is_published(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "run_task", _fake_task)
    arguments = ["--taus", "1", "--agents", "mlp", "epinet"]
    command.main([*REPRODUCE, str(tmp_path), *arguments])
    table = pd.read_csv(tmp_path / "reproduction.csv")
    assert table.published.isna().all()


def test_the_length_of_sgmcmc_is_an_option():
    assert reproduction.agent_options("sgmcmc", 500_000) == {}
    assert reproduction.agent_options("bbb", 1000) == {}
    options = reproduction.agent_options("sgmcmc", 10_000)
    task, *_ = command.make_tasks("sgmcmc", options, WORLDS, [1], "default")
    assert json.loads(task["options"]) == {
        "num_batches": 10_000,
        "burn_in_time": 2000,
        "model_saving_frequency": 20,
    }
    with pytest.raises(ValueError, match="at least 500 steps, got 10"):
        reproduction.agent_options("sgmcmc", 10)


def test_tasks_deal_out_all_settings():
    tasks = command.make_tasks("mlp", {}, WORLDS, [1], "default")
    assert len(tasks) == 14
    ids = [task["problems"].split() for task in tasks]
    assert sorted(itertools.chain(*ids)) == sorted(WORLDS)
    for half in (ids[:7], ids[7:]):  # Each holds 5 problems of all 21 settings.
        priors = [SETTINGS[i].prior_knowledge for group in half for i in group]
        counts = pd.Series([(p.num_train, p.temperature) for p in priors])
        assert list(counts.value_counts()) == [5] * 21
    alone = command.make_tasks("knn", {}, WORLDS, [1], "default")
    alone_ids = [task["problems"] for task in alone]
    assert sorted(alone_ids) == sorted(WORLDS)
    first = {SETTINGS[i].prior_knowledge for i in alone_ids[:21]}
    assert len({(prior.num_train, prior.temperature) for prior in first}) == 21


def test_without_the_mlp_there_is_nothing_to_compare_with():
    with pytest.raises(ValueError, match="compared with 'mlp'"):
        reproduction.compare(pd.DataFrame({"agent_name": ["bbb"]}), 210)


@pytest.mark.parametrize("name", ["reproduction", "posteriors"])
def test_the_published_tables_are_those_of_their_worlds(name):
    rows = pd.read_csv(TABLES / "worlds.csv.gz")
    assert not rows.duplicated(["agent_name", "problem", "tau"]).any()
    for agent, worlds in rows.groupby("agent_name"):
        assert set(worlds.problem) == set(WORLDS), agent
    expected = reproduction.compare(rows, len(WORLDS)).set_index(["tau", "agent"])
    table = pd.read_csv(TABLES / f"{name}.csv").set_index(["tau", "agent"])
    shared = table.index.intersection(expected.index)
    assert set(table.index) - set(shared) == {(tau, "sgmcmc") for tau in (1, 10, 100)}
    pd.testing.assert_frame_equal(
        table.loc[shared], expected.loc[shared], rtol=1e-4, atol=2e-6
    )
