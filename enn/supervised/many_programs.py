"""The compiled functions of many runs, with hyperparameters among their arguments."""

import concurrent.futures
import functools
import os
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec

from enn._known_rows import RowFn
from enn.losses.base import LossFnArray
from enn.networks import forwarders
from enn.networks.base import EnnArray, Output
from enn.networks.indexers import draw_indices
from enn.networks.many_indices.hoisting import after_shared_work
from enn.supervised.base import check_network
from enn.supervised.initial import check_optimizer
from enn.supervised.loop import (
    PureLoss,
    TrainingState,
    all_finite,
    batch_of,
    check_loss,
    check_over_indices,
    sgd_update,
    train_chunk,
    with_known_rows,
)
from enn.supervised.programs import shared

Hyper = Any
"""Hyperparameters of a run: a tree of numbers, usually a dict of them by name."""


class ManyPrograms:
    """Functions of all runs; see `ManyExperiments` for the arguments.

    Each runs device by device, then group by group of `runs_at_once`, so that what one
    run needs stays in the cache of a CPU while it makes its steps. `train` gives every
    processor of a CPU a share of the runs; XLA would divide small operations.
    """

    def __init__(
        self,
        make_enn: Callable[[Hyper], EnnArray],
        make_loss: Callable[[EnnArray, Hyper], LossFnArray],
        make_optimizer: Callable[[Hyper], optax.GradientTransformation],
        mesh: jax.sharding.Mesh | None,
        runs_at_once: int,
    ):
        self._make = make_enn, make_loss, make_optimizer
        self._mesh, self._runs_at_once = mesh, runs_at_once
        self.init = jax.jit(self._init, static_argnames="own")
        self._train_share = jax.jit(self._train, static_argnames=("own", "known"))
        self._join = jax.jit(_join, static_argnames="num_runs")
        self.row_values = jax.jit(self._row_values, static_argnames="known")
        self.predict = jax.jit(self._predict)
        self.sample = jax.jit(self._sample, static_argnames="num")
        self.split = jax.jit(jax.vmap(lambda key: tuple(jax.random.split(key))))
        self.finite = jax.jit(jax.vmap(all_finite))

    def parts(self, hyper: Hyper) -> tuple[EnnArray, PureLoss, Any]:
        """Returns network, loss and optimiser of one run."""
        make_enn, make_loss, make_optimizer = self._make
        enn = make_enn(hyper)
        check_network(enn)
        loss_fn = make_loss(enn, hyper)
        check_over_indices(loss_fn)
        optimizer = make_optimizer(hyper)
        check_optimizer(optimizer)
        return enn, functools.partial(loss_fn, enn), optimizer

    def _over_runs(self, fn: Callable[..., Any], mapped: Any, given: Any) -> Any:
        """Returns `fn(entry of mapped, given)` for all runs, stacked."""

        def on_device(mapped: Any, given: Any) -> Any:
            few = self._runs_at_once if self._runs_at_once > 1 else None
            return jax.lax.map(lambda one: fn(one, given), mapped, batch_size=few)

        if self._mesh is None:
            return on_device(mapped, given)
        spec = over_runs(self._mesh)
        return jax.shard_map(
            on_device,
            mesh=self._mesh,
            in_specs=(spec, PartitionSpec()),
            out_specs=spec,
            check_vma=False,
        )(mapped, given)

    def _init(self, hypers: Hyper, keys: Any, inputs: Any, own: bool) -> Any:
        def init(run: Any, given: Any) -> tuple[TrainingState, chex.PRNGKey]:
            hyper, key, own_inputs = run
            inputs = own_inputs if own else given
            enn, _, optimizer = self.parts(hyper)
            key, index_key = jax.random.split(key)
            key, init_key = jax.random.split(key)
            params, state = enn.init(init_key, inputs, enn.indexer(index_key))
            return TrainingState(params, state, optimizer.init(params)), key

        own_inputs, given = (inputs, None) if own else (None, inputs)
        return self._over_runs(init, (hypers, keys, own_inputs), given)

    def train(
        self,
        hypers: Hyper,
        state: TrainingState,
        keys: chex.PRNGKey,
        *chunk: Any,
        own: bool,
        known: tuple[int, ...] = (),
    ) -> Any:
        """Trains on a chunk, of which `data` holds `known` row values if there are.

        Returns:
          State, keys, metrics of each step, and whether all was finite, of every run.
        """
        num_runs = len(keys)
        num_shares = min(_num_processors(), -(-num_runs // self._runs_at_once))
        args, static = (hypers, state, keys, *chunk), {"own": own, "known": known}
        if self._mesh is not None or num_shares == 1:
            return self._train_share(*args, **static)
        # All shares have one size, and one program: the last run fills up the last one.
        size = -(-num_runs // num_shares)
        runs = np.minimum(np.arange(num_shares * size), num_runs - 1)
        shares = runs.reshape(num_shares, size)
        # A thread for each, as JAX runs what one thread starts in order. It is compiled
        # in this one, whose configuration other threads do not have.
        train = self._train_share.lower(*args, shares[0], **static).compile()
        with concurrent.futures.ThreadPoolExecutor(num_shares) as threads:
            trained = list(threads.map(lambda share: train(*args, share), shares))
        return self._join(trained, num_runs=num_runs)

    def _train(
        self,
        hypers: Hyper,
        state: TrainingState,
        keys: chex.PRNGKey,
        data: Any,
        batch: Any,
        num_steps: chex.Array,
        share: chex.Array | None = None,
        *,
        own: bool,
        known: tuple[int, ...],
    ) -> Any:
        """Trains the runs numbered by `share`, or all."""

        def train(run: Any, given: Any) -> Any:
            hyper, state, key, own_batch, own_values = run
            data, values, batch, num_steps = given
            _, pure_loss, optimizer = self.parts(hyper)
            batch = own_batch if own else batch
            if known:
                first = batch_of(data, batch, 0)
                fixed = _fixed(pure_loss, state, first, key, known)
                pure_loss = with_known_rows(pure_loss, fixed)
                data = data, values if own else own_values
            step = functools.partial(sgd_update, pure_loss, optimizer)
            # What the network, made in here, computes without the state, such as prior
            # functions at inputs that stay, is done before the loop over steps.
            example = state, batch_of(data, batch, 0), key
            run = after_shared_work(lambda args: step(*args), example)
            update = jax.jit(lambda *args: run(args))
            chunk = [data], [batch], [None]
            return train_chunk([update], False, state, key, *chunk, 0, num_steps)

        data, values = data if known else (data, None)
        own_batch = own_values = None
        if own:
            if data is not None:  # These are numbers of rows.
                batch = batch.reshape(len(batch), len(keys), -1)
            own_batch = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 1, 0), batch)
            batch = None
        else:
            own_values = jax.tree.map(
                lambda leaf: leaf.reshape(len(keys), -1, *leaf.shape[1:]), values
            )
            values = None
        mapped = hypers, state, keys, own_batch, own_values
        if share is not None:
            mapped = jax.tree.map(lambda leaf: leaf[share], mapped)
        return self._over_runs(train, mapped, (data, values, batch, num_steps))

    def _row_values(
        self,
        hypers: Hyper,
        state: TrainingState,
        keys: chex.PRNGKey,
        data: Any,
        rows: Any,
        known: tuple[int, ...],
    ) -> Any:
        """Returns the values of fixed functions at `rows`, `[num_runs, batch, ...]`."""

        def values(run: Any, data: Any) -> tuple[Any, ...]:
            hyper, state, key, rows = run
            _, pure_loss, _ = self.parts(hyper)
            batch = jax.tree.map(lambda leaf: leaf[rows], data)
            fixed = _fixed(pure_loss, state, batch, key, known)
            return tuple(fn(batch.x) for fn in fixed)

        return self._over_runs(values, (hypers, state, keys, rows), data)

    def _predict(
        self, hypers: Hyper, state: TrainingState, inputs: Any, keys: Any
    ) -> Output:
        def predict(run: Any, inputs: Any) -> Output:
            hyper, (params, state), key = run
            enn, _, _ = self.parts(hyper)
            return enn.apply(params, state, inputs, enn.indexer(key))[0]

        return self._over_runs(predict, (hypers, state[:2], keys), inputs)

    def _sample(
        self, hypers: Hyper, state: TrainingState, inputs: Any, keys: Any, num: int
    ) -> jax.Array:
        def sample(run: Any, inputs: Any) -> jax.Array:
            hyper, (params, state), key = run
            enn, _, _ = self.parts(hyper)
            indices = draw_indices(enn.indexer, key, num)
            return forwarders.predict_at_indices(enn, params, state, inputs, indices)

        return self._over_runs(sample, (hypers, state[:2], keys), inputs)

    def update(self, hypers: Hyper, params: Any, opt_state: Any) -> Any:
        """Returns the optimiser state after a step, for its types."""

        def update(hyper: Hyper, params: Any, opt_state: Any) -> Any:
            return self.parts(hyper)[2].update(params, opt_state, params)[1]

        return jax.vmap(update)(hypers, params, opt_state)


many_programs = shared(ManyPrograms)


def _num_processors() -> int:
    """Returns how many threads XLA runs programs on: on other devices than a CPU, one.

    XLA too takes the variable `NPROC` and the processors that the process may use.
    """
    if jax.default_backend() != "cpu":
        return 1
    usable = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))
    return int(os.environ.get("NPROC", 0)) or len(usable(0))


def _join(shares: list[Any], num_runs: int) -> Any:
    """Returns arrays `[num_runs, ...]` for those of shares, which may hold more."""
    return jax.tree.map(lambda *parts: jnp.concatenate(parts)[:num_runs], *shares)


def _fixed(
    pure_loss: PureLoss, state: Any, batch: Any, key: Any, known: tuple[int, ...]
) -> tuple[RowFn, ...]:
    """Returns the `known` ones of the functions that the network asks for in a loss."""
    _, asked = check_loss(pure_loss, state, batch, key)
    return tuple(asked[i] for i in known)


def over_runs(mesh: jax.sharding.Mesh) -> PartitionSpec:
    """Returns the partition of arrays `[num_runs, ...]` over all devices."""
    return PartitionSpec(mesh.axis_names)
