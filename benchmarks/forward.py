"""Many-index forward passes beside the naive way to write them, in the same run.

    python benchmarks/forward.py [--repeats 7]

Naive is a loop over indices (`jax.lax.map`) of a forward pass at one index as one would
write it first: the index concatenated to the inputs, the last layer projected after the
hidden units, base networks and convolutional priors run again for every index, priors
chosen by `jax.lax.switch` under `jax.vmap`. Its flops are those of one index (of the
mapped switch: all of it) times the number of indices.
"""

import argparse
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import haiku as hk
import jax
import jax.numpy as jnp
from _timing import median_seconds

from enn import networks
from enn.networks import forwarders
from enn.networks.checkpoints import EnnCheckpoint
from enn.networks.many_indices import index_map


class Case(NamedTuple):
    """A forward pass at one index, written by the library and naively.

    Attributes:
      name: what is evaluated.
      inputs: parameters, state and inputs of the network, or what there are of them.
      indices: the indices, stacked.
      ours: function of inputs, stacked indices and how many to evaluate at once.
      naive: function of inputs and one index.
      is_mapped: whether the naive one is run by `jax.vmap`, not by a loop.
    """

    name: str
    inputs: Any
    indices: Any
    ours: Callable[..., jax.Array]
    naive: Callable[[Any, Any], jax.Array]
    is_mapped: bool = False


def predictions(enn: Any) -> Callable[..., jax.Array]:
    def ours(inputs: Any, zs: Any, batch_z: int | None) -> jax.Array:
        return forwarders.predict_at_indices(enn, *inputs, zs, batch_z)

    return ours


def mlp(params: hk.Params, prefix: str, x: jax.Array) -> list[jax.Array]:
    """Outputs of all layers `prefix_0`, `prefix_1`, ..., with relu but for the last."""
    num_layers = sum(name.startswith(prefix) for name in params)
    outs = []
    for i in range(num_layers):
        x = x @ params[f"{prefix}{i}"]["w"] + params[f"{prefix}{i}"]["b"]
        x = jax.nn.relu(x) if i < num_layers - 1 else x
        outs.append(x)
    return outs


def projected(params: hk.Params, name: str, x: jax.Array, z: jax.Array) -> jax.Array:
    tiled = jnp.tile(z, (len(x), 1))
    out = mlp(params, f"{name}/~/mlp/~/linear_", jnp.concatenate([tiled, x], 1))[-1]
    return jnp.reshape(out, (len(x), -1, len(z))) @ z


def setup(enn: Any, x: Any, num_indices: int) -> tuple[Any, Any, Any]:
    keys = jax.random.split(jax.random.key(1), num_indices)
    indices = jax.vmap(enn.indexer)(keys)
    index = jax.tree.map(lambda leaf: leaf[0], indices)
    return *jax.jit(enn.init)(jax.random.key(0), x, index), indices


def tied(x: jax.Array, z: jax.Array) -> jax.Array:
    """Returns `x`, so that a compiler that knows no better computes it for every z."""
    return jnp.where(jnp.isfinite(z).all(), x, 0.0)


def mlp_epinet() -> Case:
    enn = networks.epinet.make_mlp_epinet([50, 50, 10], [50, 50], index_dim=10)
    x = jax.random.normal(jax.random.key(2), (500, 10))
    params, state, indices = setup(enn, x, 1000)

    def single(inputs: Any, z: jax.Array) -> jax.Array:
        params, _, x = inputs
        outs = mlp(params, "base_mlp/~/linear_", x)
        features = jnp.concatenate([x, *outs], axis=1)
        train, prior = (
            projected(params, f"{part}_epinet", features, z)
            for part in ("train", "prior")
        )
        return outs[-1] + train + prior

    return Case(
        "MLP epinet [50, 50, 10], batch 500, Z = 1000",
        (params, state, x),
        indices,
        predictions(enn),
        single,
    )


def last_layer_epinet() -> Case:
    epinet = networks.epinet.MLPEpinetWithPrior(30, 1000, [50], drop_inputs=True)
    hidden = jax.random.normal(jax.random.key(2), (8, 2048))
    indices = jax.vmap(epinet.indexer)(jax.random.split(jax.random.key(1), 100))
    params, state = epinet.init(jax.random.key(0), hidden, indices[0], hidden)

    def ours(inputs: Any, zs: jax.Array, batch_z: int | None) -> jax.Array:
        params, state, hidden = inputs

        def one(z: jax.Array) -> jax.Array:
            return epinet.apply(params, state, hidden, z, hidden)[0].preds

        return index_map.map_indices(one, zs, batch_z)

    def single(inputs: Any, z: jax.Array) -> jax.Array:
        params, _, hidden = inputs
        train, prior = (
            projected(params, f"{part}_epinet", hidden, z)
            for part in ("train", "prior")
        )
        return train + prior

    return Case(
        "last-layer epinet, hidden 2048, 1000 classes, batch 8, Z = 100",
        (params, state, hidden),
        indices,
        ours,
        single,
    )


def resnet_epinet() -> Case:
    resnet = networks.EnsembleResNetENN(
        10, is_training=False, config=networks.CanonicalResNets.RESNET_18.value
    )
    x = jax.random.normal(jax.random.key(2), (4, 32, 32, 3))
    variables = jax.jit(resnet.init)(jax.random.key(3), x, 0)
    base = EnnCheckpoint("base", lambda: variables, lambda: resnet)
    config = networks.epinet.ResnetFinalEpinetConfig(base, 20, 10, [50])
    enn = networks.epinet.ResnetFinalEpinet(config)
    params, state, indices = setup(enn, x, 20)

    def single(inputs: Any, z: jax.Array) -> jax.Array:
        params, state, x = inputs
        return enn.apply(params, state, tied(x, z), z)[0].preds

    return Case(
        "epinet on ResNet-18, batch 4 of 32x32, Z = 20",
        (params, state, x),
        indices,
        predictions(enn),
        single,
    )


def conv_prior() -> Case:
    prior_fn = networks.epinet.make_cifar_conv_prior(num_ensemble=10)
    x = jax.random.normal(jax.random.key(2), (16, 32, 32, 3))
    indices = jax.random.normal(jax.random.key(1), (100, 10))

    def ours(x: jax.Array, zs: jax.Array, batch_z: int | None) -> jax.Array:
        return index_map.map_indices(lambda z: prior_fn(x, z), zs, batch_z)

    def single(x: jax.Array, z: jax.Array) -> jax.Array:
        return prior_fn(tied(x, z), z)

    return Case(
        "10 conv priors of CIFAR's, batch 16, Z = 100", x, indices, ours, single
    )


def ensemble() -> Case:
    sizes, num_ensemble = [50, 50, 10], 30
    x = jax.random.normal(jax.random.key(2), (500, 10))
    enn = networks.MLPEnsembleMatchedPrior(sizes, x, num_ensemble)
    prior_fns = networks.make_mlp_ensemble_prior_fns(sizes, x, num_ensemble)
    params, state, indices = setup(enn, x, 100)

    def single(inputs: Any, z: jax.Array) -> jax.Array:
        params, _, x = inputs
        member = jax.tree.map(lambda leaf: leaf[z], params)
        train = mlp(member, "mlp/~/linear_", x)[-1]
        return train + jax.lax.switch(z, prior_fns, x)

    return Case(
        "30-member ensemble with priors [50, 50, 10], batch 500, Z = 100",
        (params, state, x),
        indices,
        predictions(enn),
        single,
        is_mapped=True,
    )


def index_mlp() -> Case:
    enn = networks.IndexMLPEnn([50, 50, 10], index_dim=10)
    x = jax.random.normal(jax.random.key(2), (500, 10))
    params, state, indices = setup(enn, x, 1000)

    def single(inputs: Any, z: jax.Array) -> jax.Array:
        params, _, x = inputs
        h, tiled = x, jnp.tile(z, (len(x), 1))
        for name in ("linear", "linear_1"):
            layer = params[f"concat_index_mlp/{name}"]
            h = jnp.concatenate([h, tiled], axis=1) @ layer["w"] + layer["b"]
            h = jax.nn.relu(h)
        layer = params["concat_index_mlp/linear_2"]
        return h @ layer["w"] + layer["b"]

    return Case(
        "index MLP [50, 50, 10], batch 500, Z = 1000",
        (params, state, x),
        indices,
        predictions(enn),
        single,
    )


def einsum_ensemble() -> Case:
    num_ensemble = 30
    enn = networks.make_einsum_ensemble_mlp_enn([50, 50, 10], num_ensemble)
    x = jax.random.normal(jax.random.key(2), (500, 10))
    params, state, indices = setup(enn, x, 100)

    def single(inputs: Any, z: jax.Array) -> jax.Array:
        params, _, x = inputs
        h = tied(x, z.astype(float))
        for name, spec in (
            ("ensemble_branch", "bi,ijk->bjk"),
            ("linear", "bik,ijk->bjk"),
            ("linear_1", "bik,ijk->bjk"),
        ):
            layer = params[f"ensemble_mlp/~/{name}"]
            h = jnp.einsum(spec, h, layer["w"]) + layer["b"]
            h = h if name == "linear_1" else jax.nn.relu(h)
        return h @ jax.nn.one_hot(z, num_ensemble)

    return Case(
        "30-member einsum ensemble [50, 50, 10], batch 500, Z = 100",
        (params, state, x),
        indices,
        predictions(enn),
        single,
    )


def hypermodel() -> Case:
    base_net = hk.without_apply_rng(
        hk.transform(lambda x: hk.nets.MLP([50, 50, 10])(x))
    )
    x = jax.random.normal(jax.random.key(2), (500, 10))
    enn = networks.MLPHypermodel(base_net, x, networks.ScaledGaussianIndexer(10))
    params, state, indices = setup(enn, x, 100)

    def single(inputs: Any, z: jax.Array) -> jax.Array:
        params, state, x = inputs
        return enn.apply(params, state, x, z)[0]

    return Case(
        "MLP hypermodel [50, 50, 10], batch 500, Z = 100",
        (params, state, x),
        indices,
        predictions(enn),
        single,
    )


def cases() -> Iterator[Case]:
    for make in (
        mlp_epinet,
        last_layer_epinet,
        resnet_epinet,
        conv_prior,
        ensemble,
        einsum_ensemble,
        index_mlp,
        hypermodel,
    ):
        yield make()


def flops(fn: Callable[..., Any], *args: Any) -> float:
    return jax.jit(fn).lower(*args).compile().cost_analysis()["flops"]


def compare(case: Case, repeats: int) -> None:
    inputs, indices = case.inputs, case.indices
    num_indices = len(indices)
    mapped = jax.vmap(case.naive, in_axes=(None, 0))

    def loop(inputs: Any, zs: Any) -> jax.Array:
        return jax.lax.map(functools.partial(case.naive, inputs), zs)

    ours = jax.jit(lambda inputs, zs: case.ours(inputs, zs, None))
    naive = jax.jit(mapped if case.is_mapped else loop)
    error = jnp.abs(ours(inputs, indices) - naive(inputs, indices)).max()
    seconds = median_seconds(
        {
            "enn": lambda: jax.block_until_ready(ours(inputs, indices)),
            "naive": lambda: jax.block_until_ready(naive(inputs, indices)),
        },
        repeats,
    )
    # XLA counts the body of a loop once: ours is counted with all indices at once.
    our_flops = flops(lambda i, zs: case.ours(i, zs, num_indices), inputs, indices)
    if case.is_mapped:
        naive_flops = flops(mapped, inputs, indices)
    else:
        naive_flops = num_indices * flops(case.naive, inputs, indices[0])
    print(f"\n{case.name} (largest difference {error:.1e})")
    print(f"{'':6} {'ms':>10} {'Gflop':>10}")
    print(f"{'enn':6} {1e3 * seconds['enn']:10.1f} {our_flops / 1e9:10.3f}")
    print(f"{'naive':6} {1e3 * seconds['naive']:10.1f} {naive_flops / 1e9:10.3f}")
    times = seconds["naive"] / seconds["enn"]
    print(f"{'ratio':6} {times:9.1f}x {naive_flops / our_flops:9.1f}x")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    print(f"jax {jax.__version__}, {jax.devices()}")
    for case in cases():
        compare(case, args.repeats)


if __name__ == "__main__":
    main()
