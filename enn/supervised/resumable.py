"""Experiments that are saved and resumed."""

import os
import pathlib
import warnings
from collections.abc import Iterator
from typing import Any

import chex
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from enn import _checks
from enn.supervised import positions, saving
from enn.supervised.base import BaseExperiment
from enn.supervised.chunks import ChunkReader


class ResumableExperiment(BaseExperiment):
    """An experiment that goes on after a restart as if it had never stopped.

    Attributes:
      rng: sequence of random keys.
      state: parameters, network state and optimiser state.
      step: number of steps trained.
    """

    rng: hk.PRNGSequence
    state: Any
    step: int
    _reader: ChunkReader
    _save_dirs: set[pathlib.Path]

    def save(self, path: str | os.PathLike[str], keep: int = 3) -> None:
        """Saves all that training needs to go on with the same numbers.

        That is the state, random keys, step and positions of the data. A save that
        is not finished is never restored: one may be killed at any moment. Several
        processes all call this, with a directory that all of them see. Needs the
        extra `checkpoints`.

        Args:
          path: directory of saves, by step.
          keep: how many of the last saves to keep in it.

        Raises:
          ValueError: if `path` holds saves that this experiment neither made nor
            restored, `keep` is no integer >= 1, or a batch was pulled but not trained.
        """
        self._save(self._check_saves(path, keep), keep)

    def restore(
        self,
        path: str | os.PathLike[str],
        step: int | None = None,
        data: bool = True,
    ) -> None:
        """Becomes what was saved, for training to go on with the same numbers.

        They are the same to the last bit on devices and versions of the same kind.
        The experiment must be made as the saved one was: code, seeds and data are not
        saved. On an error it stays as it is. Rows logged between the save and the end
        of the saved run are logged again.

        Args:
          path: directory of saves.
          step: step of the save; by default the latest save.
          data: whether to take data sets to where they stood. They need methods
            `state` and `restore`, or `get_state` and `set_state`.

        Raises:
          FileNotFoundError: if there is no finished save.
          ValueError: if there is none of `step`; it is damaged, or of another
            architecture or optimiser, with a step that can be restored instead; or
            data cannot go to where they stood.
        """
        root = saving.resolve(path)
        state, about = saving.read(root, step, self.state)
        if data:
            positions.restore(self._datasets(), about["data"])
            self._reader.drop_batch()
        key = jnp.array(about["key"], jnp.uint32)
        self._set_key(saving.wrap_key(self.rng.internal_state[0], key))
        self.state, self.step = state, about["step"]
        self._save_dirs.add(root)

    def _save(self, root: pathlib.Path, keep: int) -> None:
        if self._reader.holds_batch:
            raise ValueError("A batch was pulled but not trained: call train first.")
        about = {
            "key": np.asarray(jax.random.key_data(self._key())).tolist(),
            "data": positions.dump(self._datasets()),
        }
        saving.write(root, self.step, self.state, about, keep)
        self._save_dirs.add(root)

    def _check_saves(self, path: str | os.PathLike[str], keep: int) -> pathlib.Path:
        """Returns the directory of saves, if this experiment may save there."""
        _checks.positive_int("keep", keep)
        root = saving.resolve(path)
        if root not in self._save_dirs and (steps := saving.saved_steps(root)):
            raise ValueError(
                f"{root} holds saves of another run, the last of step {steps[-1]}: "
                "restore it first, or save elsewhere."
            )
        for name, dataset in self._datasets().items():
            if not positions.is_resumable(dataset):
                warnings.warn(
                    f"{name}, a {type(dataset).__name__}, does not tell its position: "
                    "it has no methods state and restore, or get_state and set_state. "
                    "Only restore(..., data=False) will work.",
                    stacklevel=3,
                )
        return root

    def _datasets(self) -> dict[str, Iterator[Any]]:
        """All data sets, by what messages call them."""
        raise NotImplementedError

    def _key(self) -> chex.PRNGKey:
        key, reserved = self.rng.internal_state
        if reserved:
            raise ValueError(
                "experiment.rng holds keys reserved ahead; training and saving need "
                "a sequence without reserved ones."
            )
        return key

    def _set_key(self, key: chex.PRNGKey) -> None:
        self.rng.replace_internal_state((key, ()))
