"""Ctrl-C: training stops between steps, saves, and loses nothing."""

import os
import pathlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from enn import supervised
from enn.datasets import ArrayBatch
from tests.support import tiny


@pytest.fixture(autouse=True)
def default_handler() -> Iterator[None]:
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, previous)


class Disturbed:
    """Batches of which some come with something else happening."""

    def __init__(self, happens: dict[int, Callable[[], None]], sizes: Any = None):
        self.position, self.happens, self.sizes = 0, happens, sizes or {}

    def __iter__(self) -> "Disturbed":
        return self

    def __next__(self) -> ArrayBatch:
        self.position += 1
        self.happens.get(self.position, lambda: None)()
        rng = np.random.default_rng(self.position)
        shape = (self.sizes.get(self.position, 5), 1)
        return ArrayBatch(x=rng.normal(size=(shape[0], 3)), y=rng.normal(size=shape))

    def state(self) -> int:
        return self.position

    def restore(self, state: int) -> None:
        self.position = state


def press() -> None:
    signal.raise_signal(signal.SIGINT)


@pytest.mark.slow
def test_ctrl_c_saves_and_resumes(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = tiny.make_experiment(Disturbed({14: press}))
    with pytest.raises(KeyboardInterrupt):
        experiment.train(100, progress=True, save_dir=tmp_path)
    # Batch 14 trains step 13, in a dispatch of several.
    assert 13 <= experiment.step < 40
    assert supervised.saved_steps(tmp_path) == [experiment.step]
    steps = [row["step"] for row in experiment.logger.rows if row["sgd"]]
    assert steps == list(range(1, experiment.step + 1))
    shown = capsys.readouterr().err
    assert f"{experiment.step}/100" in shown
    assert shown.endswith("\n")

    whole, resumed = (tiny.make_experiment(Disturbed({})) for _ in range(2))
    whole.train(50)
    resumed.restore(tmp_path)
    resumed.train(50 - resumed.step)
    tiny.assert_same_training(resumed, whole)
    experiment.train(50 - experiment.step)
    tiny.assert_same_training(experiment, whole)


@pytest.mark.slow
def test_sigterm_saves_and_resumes_bit_identically(tmp_path: pathlib.Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    experiment = tiny.make_experiment(
        Disturbed({14: lambda: os.kill(os.getpid(), signal.SIGTERM)})
    )
    with pytest.raises(KeyboardInterrupt):
        experiment.train(100, save_dir=tmp_path)
    assert 13 <= experiment.step < 40
    assert supervised.saved_steps(tmp_path) == [experiment.step]
    assert signal.getsignal(signal.SIGTERM) is before
    whole, resumed = (tiny.make_experiment(Disturbed({})) for _ in range(2))
    whole.train(50)
    resumed.restore(tmp_path)
    resumed.train(50 - resumed.step)
    tiny.assert_same_training(resumed, whole)


@pytest.mark.slow
def test_a_batch_of_another_shape_is_not_lost(tmp_path: pathlib.Path) -> None:
    # The reader holds batch 14, which does not stack with those before it.
    sizes = {14: 3, 15: 4}
    experiment = tiny.make_experiment(Disturbed({14: press}, sizes))
    with pytest.raises(KeyboardInterrupt):
        experiment.train(100, save_dir=tmp_path)
    assert experiment.step == experiment.dataset.position - 1
    whole, resumed = (tiny.make_experiment(Disturbed({}, sizes)) for _ in range(2))
    whole.train(30)
    resumed.restore(tmp_path)
    resumed.train(30 - resumed.step)
    tiny.assert_same_training(resumed, whole)


def test_ctrl_c_without_a_directory_just_stops() -> None:
    experiment = tiny.make_experiment(Disturbed({9: press}))
    with pytest.raises(KeyboardInterrupt):
        experiment.train(100)
    assert experiment.dataset.position == experiment.step + 1


def test_a_second_ctrl_c_stops_at_once(tmp_path: pathlib.Path) -> None:
    experiment = tiny.make_experiment(Disturbed({9: press, 10: press}))
    with pytest.raises(KeyboardInterrupt):
        experiment.train(100, save_dir=tmp_path)
    assert experiment.step == 8
    assert supervised.saved_steps(tmp_path) == []


def test_data_that_raise_it_save_too(tmp_path: pathlib.Path) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    experiment = tiny.make_experiment(Disturbed({9: stop}))
    with pytest.raises(KeyboardInterrupt):
        experiment.train(100, save_dir=tmp_path)
    assert supervised.saved_steps(tmp_path) == [7]


def test_handlers_of_others_stay(tmp_path: pathlib.Path) -> None:
    caught = []
    signal.signal(signal.SIGINT, lambda number, frame: caught.append(number))
    experiment = tiny.make_experiment(Disturbed({9: press}))
    experiment.train(20)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    assert caught == [signal.SIGINT]
    thread = threading.Thread(target=experiment.train, args=[5])
    thread.start()
    thread.join()
    assert experiment.step == 25
