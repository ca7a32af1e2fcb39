"""Adapters: outputs, Haiku functions as networks, networks without state, centering."""

import functools
import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import chex
import haiku as hk
import jax.numpy as jnp

from enn import _checks, _sharding, base
from enn.networks.base import (
    ApplyArray,
    ApplyNoState,
    EnnArray,
    EnnNoState,
    EpistemicModule,
    InitArray,
    InitNoState,
    Output,
    OutputWithPrior,
    parse_to_output_with_prior,
)
from enn.networks.base import (
    parse_net_output as parse_net_output,
)
from enn.networks.indexers import PrngIndexer, as_key
from enn.networks.inputs import check_transformed, init_once, map_rows


def scale_enn_output(enn: EnnArray, scale: float) -> EnnArray:
    """Returns `enn` with its trainable and prior outputs multiplied by `scale`.

    Numbers follow the original `enn`: for a network whose predictions are not
    `train + prior`, such as a categorical one, `train` is scaled all the same and
    the output becomes a plain `OutputWithPrior`. `extra` is left as it is.

    >>> import numpy as np
    >>> from enn import base, networks
    >>> def apply(params, state, x, z):
    ...     return networks.OutputWithPrior(train=x, prior=10 * x), state
    >>> enn = base.EpistemicNetwork(apply, None, networks.PrngIndexer())
    >>> half = networks.scale_enn_output(enn, 0.5)
    >>> out, _ = half.apply({}, {}, np.ones([1, 1]), None)
    >>> print(out.train, out.prior)
    [[0.5]] [[5.]]
    """

    def scaled_apply(
        params: hk.Params, state: hk.State, inputs: chex.Array, index: base.Index
    ) -> tuple[Output, hk.State]:
        out, state = enn.apply(params, state, inputs, index)
        return _scale(out, scale), state

    return EnnArray(scaled_apply, enn.init, enn.indexer)


def _scale(out: Output, scale: float) -> Any:
    if not isinstance(out, OutputWithPrior):
        return out * scale
    return OutputWithPrior(out.train * scale, out.prior * scale, out.extra)


def scale_prior(enn: EnnArray, scale: chex.Array | Sequence[float]) -> EnnArray:
    """Returns `enn` with the predictions train + stop_gradient(scale · prior).

    `scale_prior(enn, [1, 0])` leaves the second of two outputs, such as the scale of a
    likelihood, without a prior function.

    >>> import numpy as np
    >>> from enn import base, networks
    >>> def apply(params, state, x, z):
    ...     return networks.OutputWithPrior(train=x, prior=10 * x), state
    >>> enn = base.EpistemicNetwork(apply, None, networks.PrngIndexer())
    >>> out, _ = networks.scale_prior(enn, [1, 0]).apply({}, {}, np.ones([1, 2]), None)
    >>> print(out.train, out.prior)
    [[1. 1.]] [[10.  0.]]

    Args:
      enn: a network that returns an `OutputWithPrior`.
      scale: one factor for all outputs or one for each, `[num_outputs]`.

    Raises:
      ValueError: by `apply`, for an output without prior or of another size.
    """

    def scaled_apply(
        params: hk.Params, state: hk.State, inputs: chex.Array, index: base.Index
    ) -> tuple[Output, hk.State]:
        out, state = enn.apply(params, state, inputs, index)
        if not isinstance(out, OutputWithPrior):
            raise ValueError(
                "scale_prior needs a network that returns an OutputWithPrior, "
                f"got a {type(out).__name__}."
            )
        factors = jnp.asarray(scale)
        if factors.ndim and factors.shape != out.prior.shape[-1:]:
            raise ValueError(
                f"scale must be a number or have shape {list(out.prior.shape[-1:])} of "
                f"the outputs, got {list(factors.shape)}."
            )
        factors = jnp.broadcast_to(factors, out.prior.shape)
        return out._replace(prior=out.prior * factors), state

    return EnnArray(scaled_apply, enn.init, enn.indexer)


def add_learned_scale(
    enn: EnnArray, num_outputs: int = 1, init_scale: float = 1.0
) -> EnnArray:
    """Returns `enn` with outputs that do not depend on x: scales for a likelihood.

    Outputs `[batch, num_outputs]` become `[batch, 2 * num_outputs]`, as
    `enn.losses.GaussianNLLLoss` reads them: the second half are the parameters
    `learned_scale: {raw}`, `[num_outputs]`, with scale = softplus(raw), the same for
    all inputs and indices, without a prior.

    >>> import haiku as hk, jax, numpy as np
    >>> from enn import networks
    >>> net = networks.wrap_net_fn_as_enn(lambda x: hk.Linear(1)(x))
    >>> enn = networks.add_learned_scale(net, init_scale=0.5)
    >>> x, key = np.array([[0.0]]), jax.random.key(0)
    >>> out, _ = enn.apply(*enn.init(key, x, key), x, key)
    >>> mean, raw = out.preds[0]
    >>> round(float(mean), 3), round(float(jax.nn.softplus(raw)), 3)
    (0.0, 0.5)

    Args:
      enn: network of the means.
      num_outputs: its number of outputs.
      init_scale: scale at the start, in units of the target, > 0.

    Raises:
      ValueError: unless `init_scale` is > 0; by `apply`, for another number of
        outputs.
    """
    if not init_scale > 0:
        raise ValueError(f"init_scale must be > 0, got {init_scale}.")
    raw = init_scale + math.log(-math.expm1(-init_scale))  # The inverse of softplus.

    def init(
        rng_key: chex.PRNGKey, inputs: chex.Array, index: base.Index
    ) -> tuple[hk.Params, hk.State]:
        params, state = enn.init(rng_key, inputs, index)
        scale = {"learned_scale": {"raw": jnp.full([num_outputs], raw)}}
        return merge_modules(params, scale), state

    def apply(
        params: hk.Params, state: hk.State, inputs: chex.Array, index: base.Index
    ) -> tuple[Output, hk.State]:
        others = {name: p for name, p in params.items() if name != "learned_scale"}
        out, state = enn.apply(others, state, inputs, index)
        train, prior, extra = parse_to_output_with_prior(out)
        shape = (jnp.shape(train)[0], num_outputs)
        _checks.shape(
            "network output", train, shape, f"[batch, num_outputs] = {list(shape)}"
        )
        scale = jnp.broadcast_to(params["learned_scale"]["raw"], shape)
        train = jnp.concatenate([train, scale.astype(train.dtype)], axis=1)
        prior = jnp.concatenate([prior, jnp.zeros_like(prior)], axis=1)
        return OutputWithPrior(train, prior, extra), state

    return EnnArray(apply, init, enn.indexer)


def epistemic_network_from_module(
    enn_ctor: Callable[[], EpistemicModule], indexer: base.EpistemicIndexer
) -> EnnArray:
    """Returns the network of a Haiku module that takes inputs and an index.

    >>> import jax, numpy as np
    >>> from enn import networks
    >>> class Projection(networks.EpistemicModule):  # f(x, z) = x·z
    ...     def __call__(self, inputs, index):
    ...         return inputs @ index[:, None]
    >>> gaussian = networks.GaussianIndexer(2)
    >>> enn = networks.epistemic_network_from_module(Projection, gaussian)
    >>> x, z = np.array([[1.0, 2.0]]), np.array([3.0, 4.0])
    >>> print(enn.apply(*enn.init(jax.random.key(0), x, z), x, z)[0])
    [[11.]]

    Args:
      enn_ctor: makes the module; called inside a Haiku transform.
      indexer: draws the index that the module takes.
    """

    def forward(inputs: chex.Array, index: base.Index) -> Output:
        return enn_ctor()(inputs, index)

    transformed = hk.without_apply_rng(hk.transform_with_state(forward))
    init = functools.partial(init_once, transformed.init)
    return EnnArray(transformed.apply, init, indexer)


def wrap_net_fn_as_enn(
    net_fn: Callable[[Any], Any],
) -> base.EpistemicNetwork[Any, Any]:
    """Returns a function of inputs alone, to be transformed, as a network.

    The index is a PRNG key that nothing uses.

    >>> import haiku as hk, numpy as np
    >>> from enn import networks
    >>> enn = networks.wrap_net_fn_as_enn(lambda x: hk.Linear(1)(x))
    >>> params = {"linear": {"w": np.array([[3.0]]), "b": np.array([1.0])}}
    >>> out, _ = enn.apply(params, {}, np.array([[2.0]]), None)
    >>> print(out)  # 3 · 2 + 1
    [[7.]]
    >>> networks.wrap_net_fn_as_enn(hk.Linear)
    Traceback (most recent call last):
        ...
    TypeError: net_fn must be a function of inputs, got the class Linear: pass ...

    Raises:
      TypeError: for a class, such as that of a module, in place of a function.
    """
    _check_function(net_fn)
    transformed = hk.without_apply_rng(hk.transform_with_state(net_fn))

    def apply(
        params: hk.Params, state: hk.State, inputs: Any, index: base.Index
    ) -> tuple[Any, hk.State]:
        del index
        return transformed.apply(params, state, inputs)

    def init(
        rng_key: chex.PRNGKey, inputs: Any, index: base.Index
    ) -> tuple[hk.Params, hk.State]:
        del index
        return transformed.init(rng_key, inputs)

    return base.EpistemicNetwork(apply, init, PrngIndexer())


def _check_function(net_fn: Any) -> None:
    if isinstance(net_fn, type):
        name = net_fn.__name__
        raise TypeError(
            "net_fn must be a function of inputs, got the class "
            f"{name}: pass lambda x: {name}(...)(x)."
        )


def wrap_transformed_as_enn_no_state(transformed: hk.Transformed) -> EnnNoState:
    """Returns a transformed function of inputs alone as a network without state.

    >>> import haiku as hk, numpy as np
    >>> from enn import networks
    >>> net = hk.without_apply_rng(hk.transform(lambda x: hk.Linear(1)(x)))
    >>> enn = networks.wrap_transformed_as_enn_no_state(net)
    >>> params = {"linear": {"w": np.array([[3.0]]), "b": np.array([1.0])}}
    >>> print(enn.apply(params, np.array([[2.0]]), None))  # 3 · 2 + 1
    [[7.]]

    Args:
      transformed: a pair without apply-rng, from
        `hk.without_apply_rng(hk.transform(...))`.

    Raises:
      TypeError: unless `transformed` is a pair of functions.
      ValueError: if `transformed` still takes a random key in apply.
    """
    check_transformed(transformed)
    if "rng" in list(inspect.signature(transformed.apply).parameters)[1:2]:
        raise ValueError(
            "The transformed function still takes a random key in apply: wrap it "
            "with hk.without_apply_rng first."
        )

    def apply(params: hk.Params, inputs: chex.Array, index: base.Index) -> Output:
        del index
        return transformed.apply(params, inputs)

    def init(rng_key: chex.PRNGKey, inputs: chex.Array, index: base.Index) -> hk.Params:
        del index
        return transformed.init(rng_key, inputs)

    return EnnNoState(apply, init, PrngIndexer())


def wrap_transformed_as_enn(transformed: hk.Transformed) -> EnnArray:
    """Returns a transformed function of inputs alone as a network with empty state.

    See `wrap_transformed_as_enn_no_state` for `transformed`.

    >>> import haiku as hk, numpy as np
    >>> from enn import networks
    >>> net = hk.without_apply_rng(hk.transform(lambda x: hk.Linear(1)(x)))
    >>> enn = networks.wrap_transformed_as_enn(net)
    >>> params = {"linear": {"w": np.array([[3.0]]), "b": np.array([1.0])}}
    >>> print(enn.apply(params, {}, np.array([[2.0]]), None)[0])  # 3 · 2 + 1
    [[7.]]
    >>> networks.wrap_transformed_as_enn(hk.transform(lambda x: hk.Linear(1)(x)))
    Traceback (most recent call last):
        ...
    ValueError: The transformed function still takes a random key in apply: ...
    """
    return wrap_enn_no_state_as_enn(wrap_transformed_as_enn_no_state(transformed))


def wrap_stochastic_fn_as_enn(
    net_fn: Callable[[Any], Any], shared_draws: bool = True
) -> base.EpistemicNetwork[Any, Any]:
    """Returns a function that draws from `hk.next_rng_key`, such as one with dropout.

    The index is the PRNG key of those draws. Initialisation does not read it.

    >>> import haiku as hk, jax, numpy as np
    >>> from enn import networks
    >>> def net_fn(x):
    ...     return hk.Linear(2)(hk.dropout(hk.next_rng_key(), 0.5, x))
    >>> enn = networks.wrap_stochastic_fn_as_enn(net_fn)
    >>> equal_rows = np.ones([4, 3])
    >>> index = enn.indexer(jax.random.key(1))
    >>> params, state = enn.init(jax.random.key(0), equal_rows, index)
    >>> out, _ = enn.apply(params, state, equal_rows, index)
    >>> bool((out == out[:1]).all())
    True

    Args:
      net_fn: function of inputs alone, to be transformed by Haiku.
      shared_draws: whether all rows of a batch share the draws, such as masks of
        `hk.dropout`, so that an index is one function and a prediction at it joint.
        Otherwise, and where the new state depends on the batch, as with batch
        normalisation in training, a row's draws depend on its place in the batch.

    Raises:
      TypeError: for a class, such as that of a module, in place of a function.
      ValueError: by `apply`, for an index that is not a key; an integer is the seed of
        one, and None is accepted if nothing is drawn.
    """
    _check_function(net_fn)
    transformed = hk.transform_with_state(net_fn)

    @_sharding.allow_explicit_axes
    def apply(
        params: hk.Params, state: hk.State, inputs: Any, index: base.Index
    ) -> tuple[Any, hk.State]:
        key = index if isinstance(index, int | None) else as_key(index)

        def run(inputs: Any) -> tuple[Any, hk.State]:
            return transformed.apply(params, state, key, inputs)

        return map_rows(run, inputs) if shared_draws else run(inputs)

    def init(
        rng_key: chex.PRNGKey, inputs: Any, index: base.Index
    ) -> tuple[hk.Params, hk.State]:
        del index
        return transformed.init(rng_key, inputs)

    return base.EpistemicNetwork(apply, init, PrngIndexer())


def wrap_apply_no_state_as_apply(apply: ApplyNoState) -> ApplyArray:
    """Returns `apply` with a state argument that it ignores; the new state is `{}`.

    >>> from enn import networks
    >>> def plain(params, x, z):
    ...     return params * x + z
    >>> apply = networks.wrap_apply_no_state_as_apply(plain)
    >>> apply(2.0, {}, 3.0, 1.0)
    (7.0, {})
    """

    def new_apply(
        params: hk.Params,
        state: hk.State,
        inputs: chex.Array,
        index: base.Index,
    ) -> tuple[Output, hk.State]:
        return apply(params, inputs, index), {}

    return new_apply


def wrap_init_no_state_as_init(init: InitNoState) -> InitArray:
    """Returns `init` with an empty state beside the parameters.

    >>> import jax
    >>> from enn import networks
    >>> init = networks.wrap_init_no_state_as_init(lambda key, x, z: 2.0)
    >>> init(jax.random.key(0), 3.0, 1.0)
    (2.0, {})
    """

    def new_init(
        rng_key: chex.PRNGKey, inputs: chex.Array, index: base.Index
    ) -> tuple[hk.Params, hk.State]:
        return init(rng_key, inputs, index), {}

    return new_init


def wrap_enn_no_state_as_enn(enn: EnnNoState) -> EnnArray:
    """Returns a network without state as one with empty state.

    >>> from enn import networks
    >>> indexer = networks.PrngIndexer()
    >>> plain = networks.EnnNoState(lambda params, x, z: params * x, None, indexer)
    >>> enn = networks.wrap_enn_no_state_as_enn(plain)
    >>> enn.apply(2.0, {}, 3.0, None)
    (6.0, {})
    """
    return EnnArray(
        wrap_apply_no_state_as_apply(enn.apply),
        wrap_init_no_state_as_init(enn.init),
        enn.indexer,
    )


def wrap_enn_as_enn_no_state(
    enn: EnnArray, constant_state: hk.State | None = None
) -> EnnNoState:
    """Returns `enn` without its state, which stays at `constant_state`.

    >>> from enn import base, networks
    >>> def apply(params, state, x, z):
    ...     return x - state["mean"], state
    >>> enn = base.EpistemicNetwork(apply, None, networks.PrngIndexer())
    >>> plain = networks.wrap_enn_as_enn_no_state(enn, constant_state={"mean": 2.0})
    >>> plain.apply({}, 5.0, None)
    3.0

    Args:
      enn: the network to wrap.
      constant_state: the state of every forward pass, such as batch norm statistics
        after training. May be left out only where `enn` has no state.

    Raises:
      ValueError: by `init` and `apply` of the result, where `enn` has state and no
        `constant_state` is given.
    """
    state = {} if constant_state is None else constant_state

    def check_known(state: hk.State) -> None:
        if state and constant_state is None:
            raise ValueError(
                f"The network has state, for the modules {sorted(state)}: give "
                "wrap_enn_as_enn_no_state a constant_state to run it with."
            )

    def apply(params: hk.Params, inputs: chex.Array, index: base.Index) -> Output:
        out, new_state = enn.apply(params, state, inputs, index)
        check_known(new_state)
        return out

    def init(rng_key: chex.PRNGKey, inputs: chex.Array, index: base.Index) -> hk.Params:
        params, init_state = enn.init(rng_key, inputs, index)
        check_known(init_state)
        return params

    return EnnNoState(apply, init, enn.indexer)


def make_centered_enn(enn: EnnArray, x_train: chex.Array) -> EnnArray:
    """Returns `enn` applied to (x - mean) / (std + 1e-9) of `x_train`.

    Numbers follow the original `enn`: a feature that is constant in `x_train` is
    divided by 1e-9, so that a test value which differs becomes huge.

    >>> import numpy as np
    >>> from enn import base, networks
    >>> def apply(params, state, x, z):
    ...     return x, state
    >>> enn = base.EpistemicNetwork(apply, None, networks.PrngIndexer())
    >>> x_train = np.array([[10.0], [14.0]])  # Mean 12, standard deviation 2
    >>> centered = networks.make_centered_enn(enn, x_train)
    >>> print(centered.apply({}, {}, np.array([[12.0], [16.0]]), None)[0].ravel())
    [0. 2.]

    Args:
      enn: the network to wrap.
      x_train: training inputs, `[num_data, ...]`; statistics are per feature, over
        the first axis.

    Raises:
      ValueError: if `x_train` has fewer than two axes; by `apply` for inputs of other
        features.
    """
    if jnp.ndim(x_train) < 2:
        raise ValueError(
            f"x_train must have shape [num_data, ...], got {list(jnp.shape(x_train))}."
        )
    mean = jnp.mean(x_train, axis=0)
    std = jnp.std(x_train, axis=0)

    def centered_apply(
        params: hk.Params, state: hk.State, inputs: chex.Array, index: base.Index
    ) -> tuple[Output, hk.State]:
        shape = jnp.shape(inputs)
        if shape[-mean.ndim :] != mean.shape:
            raise ValueError(
                "inputs must have the features of x_train, of shape "
                f"{list(mean.shape)}, got shape {list(shape)}."
            )
        center, scale = (jnp.broadcast_to(x, shape) for x in (mean, std + 1e-9))
        return enn.apply(params, state, (inputs - center) / scale, index)

    return EnnArray(centered_apply, enn.init, enn.indexer)


def make_centered_enn_no_state(enn: EnnNoState, x_train: chex.Array) -> EnnNoState:
    """Returns `enn` applied to standardised inputs; see `make_centered_enn`.

    >>> import numpy as np
    >>> from enn import networks
    >>> enn = networks.EnnNoState(lambda params, x, z: x, None, networks.PrngIndexer())
    >>> x_train = np.array([[10.0], [14.0]])  # Mean 12, standard deviation 2
    >>> centered = networks.make_centered_enn_no_state(enn, x_train)
    >>> print(centered.apply({}, np.array([[12.0], [16.0]]), None).ravel())
    [0. 2.]
    """
    centered = make_centered_enn(wrap_enn_no_state_as_enn(enn), x_train)

    def apply(params: hk.Params, inputs: chex.Array, index: base.Index) -> Output:
        return centered.apply(params, {}, inputs, index)[0]

    return EnnNoState(apply, enn.init, enn.indexer)


def select_modules(tree: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Returns the modules of `tree` with these names, or raises ValueError."""
    missing = sorted(set(names) - set(tree))
    if missing:
        raise ValueError(f"Parameters or state lack the module {missing[0]!r}.")
    return {name: tree[name] for name in names}


def merge_modules(base: Mapping[str, Any], head: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the modules of both, or raises ValueError for a name that both have.

    Args:
      base: parameters or state of the base network by module name.
      head: the same of the network on top of it.
    """
    shared = sorted(set(base) & set(head))
    if shared:
        raise ValueError(
            f"Base network and head both have a module named {shared[0]!r}: give one "
            f"of them another name. All names in common: {', '.join(shared)}."
        )
    return {**head, **base}
