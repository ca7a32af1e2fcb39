"""Scores and ranking of agents, beside numbers of the specification."""

import math
import warnings

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from enn import testbed
from enn.loggers import MemoryLogger

IDS = testbed.CLASSIFICATION_2D
UNIFORM = "baseline:uniform_class_probs"


def _clean(name, kl, num=420):
    rows = {"problem_id": IDS[:num], "kl_estimate": [kl(i) for i in range(num)]}
    return testbed.clean_results(pd.DataFrame(rows), name)


@pytest.fixture(scope="module")
def board():
    agents = [
        _clean(UNIFORM, lambda i: 1 + 0.01 * (i % 10)),
        _clean("mlp", lambda i: 0.5 + 0.001 * i),
        _clean("negative", lambda i: -0.5 if i % 7 == 0 else 0.25),
        _clean("missing", lambda i: 0.3, 418),
    ]
    return testbed.LeaderboardData(agents, ["problem_id"])


def test_scores(board):
    scores = {agent.name: agent.score for agent in board.agents}
    np.testing.assert_allclose(scores[UNIFORM], 1.045)
    np.testing.assert_allclose(scores["negative"], 0.214286, atol=1e-6)
    np.testing.assert_allclose(scores["missing"], 4762.203333, rtol=1e-9)
    health = {agent.name: agent.pct_health for agent in board.agents}
    np.testing.assert_allclose(health["negative"], 0.857143, atol=1e-6)
    np.testing.assert_allclose(health["missing"], 0.995238, atol=1e-6)
    assert [agent.validated for agent in board.agents] == [True, True, False, False]


def test_ranking(board):
    one = testbed.display_ranking_df(board).set_index("agent_name")
    np.testing.assert_allclose(one.normalized_kl["mlp"], 0.578469, atol=1e-6)
    np.testing.assert_allclose(one.normalized_stderr["mlp"], 8.691819e-4, rtol=1e-6)
    np.testing.assert_allclose(one.normalized_kl["negative"], 0.205058, atol=1e-6)
    assert list(one.index) == ["negative", "missing", "mlp", UNIFORM]
    ten = testbed.display_ranking_df(board, tau=10).set_index("agent_name")
    np.testing.assert_allclose(ten.normalized_kl["mlp"], 0.779426, atol=1e-6)
    np.testing.assert_allclose(ten.normalized_kl["missing"], 9113.977671, rtol=1e-9)
    np.testing.assert_allclose(ten.normalized_stderr["missing"], 5764.004, rtol=1e-6)
    by_mlp = testbed.display_ranking_df(board, normalize_by="mlp")
    assert by_mlp.set_index("agent_name").normalized_kl["mlp"] == 1
    with pytest.warns(UserWarning, match="No agent 'nobody'"):
        testbed.display_ranking_df(board, normalize_by="nobody")


@pytest.mark.parametrize("wrong", [-math.inf, math.inf, math.nan])
def test_a_result_that_is_not_finite_is_no_perfect_score(wrong):
    agent = _clean("one", lambda i: wrong if i == 0 else 0.5)
    np.testing.assert_allclose(agent.score, (1e6 + 419 * 0.5) / 420)
    assert not agent.validated
    assert agent.df.raw_kl_estimate.iloc[0] == wrong or math.isnan(wrong)


def test_rows_of_other_problems_and_repeated_ones():
    ids = [*testbed.CLASSIFICATION_2D_TEST, "classification_2d/0", "nothing/1"]
    frame = pd.DataFrame({"problem_id": [*ids, ids[0]], "kl_estimate": 1.0})
    frame.loc[len(frame) - 1, "kl_estimate"] = 9.0
    agent = testbed.clean_results(frame, "a:1", testbed.CLASSIFICATION_2D_TEST)
    assert len(agent.df) == 7
    assert agent.score == 1
    np.testing.assert_allclose(agent.pct_health, 1 - 1 / 7)
    assert set(agent.df.entry_name) == {"a"}
    assert set(agent.df.task) == {"classification_2d_test"}


def test_boards_combine_unless_agents_repeat(board):
    other = testbed.LeaderboardData([_clean("other", lambda i: 0.1)], ["seed"])
    both = testbed.combine_leaderboards([board, other])
    assert both.names == [*board.names, "other"]
    assert both.sweep_vars == ["problem_id", "seed"]
    assert len(both.df) == 5 * 420
    with pytest.raises(ValueError, match=r"repeated: \['other'\]"):
        testbed.combine_leaderboards([other, other])


def _uniform(data, prior):
    return lambda x, key: jnp.zeros([len(x), 2])


@pytest.mark.slow
def test_results_go_to_files_and_back(tmp_path):
    for problem_id in testbed.CLASSIFICATION_2D_TEST[:2]:
        problem = testbed.problem_from_id_csv(problem_id, tmp_path)
        testbed.run(_uniform, problem)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "problem_id_-_classification_2d_test-0.csv",
        "problem_id_-_classification_2d_test-1.csv",
    ]
    with pytest.raises(ValueError, match="pass overwrite=True"):
        testbed.problem_from_id_csv("classification_2d_test/0", tmp_path)
    testbed.problem_from_id_csv("classification_2d_test/0", tmp_path, overwrite=True)
    entries = [testbed.Entry("uniform", str(tmp_path))]
    with pytest.warns(UserWarning, match="uniform: 28.6% of the results"):
        board = testbed.load_entries_csv(entries, testbed.CLASSIFICATION_2D_TEST)
    kls = board.df.sort_values("problem_id").kl_estimate
    np.testing.assert_allclose(kls[:2], [0.678335, 0.690958], atol=1e-6)
    with pytest.raises(FileNotFoundError, match="holds no results"):
        testbed.load_entries_csv([testbed.Entry("none", str(tmp_path / "no"))])
    first = next(tmp_path.iterdir())
    first.write_text(first.read_text().replace("default", "published"))
    with pytest.raises(ValueError, match="mixes results of two random"):
        testbed.load_entries_csv(entries, testbed.CLASSIFICATION_2D_TEST)


@pytest.mark.slow
def test_the_clock_of_training_starts_with_the_data():
    logger = MemoryLogger()
    problem = testbed.LoggingWrapper(
        testbed.problem_from_id("classification_2d/0"), logger
    )
    quality = testbed.run(_uniform, problem)
    (row,) = logger.rows
    assert row["kl_estimate"] == quality.kl_estimate
    assert row["test_acc"] == quality.extra["test_acc"]
    assert 0 <= row["train_seconds"] < row["total_seconds"]
    assert row["evaluation_seconds"] <= row["total_seconds"]
    assert problem.problem.prior_knowledge == problem.prior_knowledge
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        testbed.run(_uniform, problem)
    assert len(logger.rows) == 2
