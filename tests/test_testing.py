"""The checker names the part of the contract that a network breaks."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from enn import base, networks, testing

X = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
calls = itertools.count()


def linear(params: Any, state: Any, inputs: Any, index: Any) -> Any:
    return inputs @ params["w"] + jax.random.uniform(index), state


def init(key: Any, inputs: Any, index: Any) -> Any:
    return {"w": jax.random.normal(key, [3, 2])}, {"calls": {"count": jnp.zeros(())}}


def is_traced(value: Any) -> bool:
    return isinstance(value, jax.core.Tracer)


def under_vmap(params: Any, state: Any, inputs: Any, index: Any) -> Any:
    """Looks at the values of all indices."""
    draws = jax.random.uniform(index)
    shift = jax.custom_batching.custom_vmap(lambda u: u)
    shift.def_vmap(lambda size, batched, u: (u.mean() + 0 * u, batched[0]))
    return inputs @ params["w"] + shift(draws), state


BROKEN = {
    "a call counts": (
        "deterministic",
        lambda p, s, x, z: (linear(p, s, x, z)[0] + next(calls), s),
    ),
    "no rows": ("output", lambda p, s, x, z: (linear(p, s, x, z)[0].sum(0), s)),
    "integers": ("output", lambda p, s, x, z: (linear(p, s, x, z)[0].astype(int), s)),
    "nan": ("output", lambda p, s, x, z: (jnp.log(-jnp.abs(linear(p, s, x, z)[0])), s)),
    "a tuple": ("output", lambda p, s, x, z: ((linear(p, s, x, z)[0], x), s)),
    "no state": ("state", lambda p, s, x, z: (linear(p, s, x, z)[0], {})),
    "another type": (
        "state",
        lambda p, s, x, z: (
            linear(p, s, x, z)[0],
            {"calls": {"count": jnp.zeros((), int)}},
        ),
    ),
    "noise per row": (
        "rows",
        lambda p, s, x, z: (x @ p["w"] + jax.random.normal(z, (len(x), 2)), s),
    ),
    "mean of the batch": (
        "rows",
        lambda p, s, x, z: ((x - x.mean(0, keepdims=True)) @ p["w"] + 1, s),
    ),
    "Python looks at values": (
        "jit",
        lambda p, s, x, z: (
            linear(p, s, x, z)[0] * (1 if x.sum() > 0 and float(p["w"][0, 0]) else 2),
            s,
        ),
    ),
    "other under jit": (
        "jit",
        lambda p, s, x, z: (linear(p, s, x, z)[0] * (1 + is_traced(p["w"])), s),
    ),
    "indices look at each other": ("vmap", under_vmap),
    "no parameters": ("gradients", lambda p, s, x, z: (x + jax.random.uniform(z), s)),
    "infinite slope": (
        "gradients",
        lambda p, s, x, z: (x @ jnp.sqrt(0 * p["w"]) + 1 + jax.random.uniform(z), s),
    ),
    "fails": ("apply", lambda p, s, x, z: (x @ p["nothing"], s)),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_is_named(name: str) -> None:
    part, apply = BROKEN[name]
    enn = base.EpistemicNetwork(apply, init, networks.PrngIndexer())
    with pytest.raises(testing.BrokenContractError, match=f"- {part}: ") as caught:
        testing.check_enn(enn, X)
    assert list(caught.value.problems) == [part]


@pytest.mark.parametrize("name", ["noise per row", "mean of the batch"])
def test_what_is_so_on_purpose_may_be(name: str) -> None:
    enn = base.EpistemicNetwork(BROKEN[name][1], init, networks.PrngIndexer())
    testing.check_enn(enn, X, draws_per_row=True, batch_statistics=True)


def test_keys_parameters_and_initialisation() -> None:
    def typed(key: Any, inputs: Any, index: Any) -> Any:
        scale = 1 + jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
        params, state = init(key, inputs, index)
        return {"w": scale * params["w"]}, state

    def fails(key: Any, inputs: Any, index: Any) -> Any:
        raise KeyError("nothing here")

    def odd(key: Any, inputs: Any, index: Any) -> Any:
        params, state = init(key, inputs, index)
        return params | {"key": jax.random.key(0)}, state

    for wrong, part in ((typed, "keys"), (fails, "init"), (odd, "saving")):
        enn = base.EpistemicNetwork(linear, wrong, networks.PrngIndexer())
        with pytest.raises(testing.BrokenContractError, match=f"- {part}: ") as caught:
            testing.check_enn(enn, X)
        assert part in caught.value.problems


def test_arguments() -> None:
    enn = base.EpistemicNetwork(linear, init, networks.PrngIndexer())
    testing.check_enn(enn, X)
    with pytest.raises(ValueError, match="x must have at least two rows"):
        testing.check_enn(enn, X[:1])
    with pytest.raises(TypeError, match="EpistemicNetwork"):
        testing.check_enn(linear, X)
