"""Where training starts, and what looks at it along the way."""

import inspect
import itertools
import pathlib
from typing import Any

import haiku as hk
import jax
import numpy as np
import optax
import pytest

from tests.support import tiny


class Collect:
    """Keeps the steps and weights that it sees, and can be saved."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def __call__(self, state: Any, step: int) -> None:
        self.seen.append([step, np.asarray(state.params["linear"]["w"]).tolist()])

    def state(self) -> Any:
        return self.seen

    def restore(self, state: Any) -> None:
        self.seen = state


@pytest.mark.parametrize("every", [1, 4])
def test_the_state_at_every_nth_step_is_seen(every: int) -> None:
    collect, expected = Collect(), tiny.make_experiment()
    experiment = tiny.make_experiment(callback=collect, callback_every=every)
    experiment.train(6)
    experiment.train(4)
    assert [step for step, _ in collect.seen] == list(range(every, 11, every))
    for step, weights in collect.seen:
        expected.train(step - expected.step)
        np.testing.assert_array_equal(expected.state.params["linear"]["w"], weights)
    expected.train(10 - expected.step)
    tiny.assert_same_training(experiment, expected)


@pytest.mark.parametrize("answer", [False, np.bool_(False), jax.numpy.array(False)])
def test_false_stops_training_and_saves(answer: Any, tmp_path: pathlib.Path) -> None:
    def stop(state: Any, step: int) -> Any:
        return answer if step == 6 else np.array([])  # Falsy, but not False.

    experiment = tiny.make_experiment(callback=stop, callback_every=2)
    experiment.train(50, save_dir=tmp_path)
    assert experiment.step == 6
    resumed = tiny.make_experiment(callback=stop, callback_every=2)
    resumed.restore(tmp_path)
    resumed.train(5)
    assert resumed.step == 11


def test_what_a_callback_gathered_is_kept_by_resume(tmp_path: pathlib.Path) -> None:
    whole, first, second = Collect(), Collect(), Collect()
    tiny.make_experiment(callback=whole, callback_every=3).train(12)
    experiment = tiny.make_experiment(callback=first, callback_every=3)
    experiment.train(8, save_dir=tmp_path)
    resumed = tiny.make_experiment(callback=second, callback_every=3)
    resumed.restore(tmp_path)
    resumed.train(4)
    assert second.seen == whole.seen
    assert [step for step, _ in second.seen] == [3, 6, 9, 12]


def test_multiloss_experiments_call_back_too() -> None:
    steps: list[int] = []
    experiment = tiny.make_multiloss_experiment(
        callback=lambda state, step: steps.append(step), callback_every=2
    )
    experiment.train(5)
    assert steps == [2, 4]


def test_a_frequency_out_of_range() -> None:
    with pytest.raises(ValueError, match="callback_every must be an integer >= 1"):
        tiny.make_experiment(callback=Collect(), callback_every=0)


def test_training_goes_on_from_given_parameters() -> None:
    first = tiny.make_experiment()
    first.train(5)
    trained = first.state
    params = hk.data_structures.to_immutable_dict(trained.params)
    both = tiny.make_experiment(
        init_params=params, init_state=trained.network_state, optimizer=optax.sgd(0.1)
    )
    assert both.state.network_state["calls"]["count"] == 5
    only_params = tiny.make_experiment(init_params=jax.device_get(params))
    assert only_params.state.network_state["calls"]["count"] == 0
    for experiment in (both, only_params):
        tiny.assert_identical(experiment.state.params, trained.params)
        # The keys that follow are those of any experiment of this seed.
        key, _ = experiment.rng.internal_state
        assert (key == tiny.make_experiment().rng.internal_state[0]).all()
    tiny.assert_identical(both.state.opt_state, optax.sgd(0.1).init(trained.params))
    assert int(only_params.state.opt_state[0].count) == 0
    experiment = tiny.make_multiloss_experiment(init_params=params)
    tiny.assert_identical(experiment.state.params, trained.params)


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (
            {"init_params": {"linear": {"w": np.ones([2, 1])}}},
            r"init_params is of .*: \['linear'\]\['w'\] has shape \[2, 1\]",
        ),
        ({"init_params": {}}, r"init_params .*: \['linear'\]\['w'\] is missing"),
        ({"init_state": {"a": 1}}, r"init_state .*\['calls'\]\['count'\] is missing"),
    ],
)
def test_parameters_of_another_network(start: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny.make_experiment(**start)


def test_attributes_are_documented() -> None:
    experiment = tiny.make_experiment()
    for cls in (type(experiment), type(tiny.make_multiloss_experiment())):
        doc = inspect.cleandoc(cls.__doc__)  # As Python 3.13 keeps it.
        attributes = doc.partition("Attributes:")[2].partition("Args:")[0]
        documented = {
            line.strip().partition(":")[0]
            for line in attributes.splitlines()
            if line.startswith("  ") and line[2:3] != " " and ":" in line
        }
        public = {
            n for n in itertools.chain(vars(cls), vars(experiment)) if n[0] != "_"
        }
        methods = {n for n in public if callable(getattr(cls, n, None))}
        assert documented == public - methods - {"pure_trainers"}
