import jax
import jax.numpy as jnp
import numpy as np
import pytest

from enn.networks.base import OutputWithPrior
from enn.networks.epinet.last_layer import MLPEpinetWithPrior, parse_base_hidden
from enn.networks.indexers import GaussianIndexer
from tests.support import cost, fast, golden


@pytest.mark.slow
def test_epinet_gives_the_golden_numbers() -> None:
    x, hidden = golden.X5, golden.normal(6, 7, seed=5)
    epinet = MLPEpinetWithPrior(3, 4, [5], prior_scale=0.5)
    index = epinet.indexer(golden.keys(1))
    args = (x, index, hidden)
    params, state = jax.jit(epinet.init)(golden.keys(0), *args)
    drop = MLPEpinetWithPrior(3, 4, [5], [6, 6], drop_inputs=True)
    drop_params, drop_state = jax.jit(drop.init)(golden.keys(0), *args)
    apply, drop_apply = jax.jit(epinet.apply), jax.jit(drop.apply)
    golden.assert_matches(
        "last_layer_epinet",
        {
            "params": params,
            "out": golden.output(apply(params, state, *args)[0]),
            "dropped_params": drop_params,
            "dropped": golden.output(drop_apply(drop_params, drop_state, *args)[0]),
        },
    )


@pytest.mark.parametrize("drop_inputs", [False, True])
def test_tree_of_the_specification(drop_inputs: bool) -> None:
    epinet = MLPEpinetWithPrior(3, 2, [5], [4], drop_inputs=drop_inputs)
    args = (fast.X, jnp.ones(3), jnp.ones((2, 4)))
    params, state = jax.eval_shape(epinet.init, golden.keys(0), *args)
    size = 7 if drop_inputs else 10
    assert jax.tree.map(lambda leaf: leaf.shape, params) == {
        "train_epinet/~/mlp/~/linear_0": {"w": (size, 5), "b": (5,)},
        "train_epinet/~/mlp/~/linear_1": {"w": (5, 6), "b": (6,)},
        "prior_epinet/~/mlp/~/linear_0": {"w": (size, 4), "b": (4,)},
        "prior_epinet/~/mlp/~/linear_1": {"w": (4, 6), "b": (6,)},
    }
    assert not state


def test_predictions_of_the_specification() -> None:
    epinet = MLPEpinetWithPrior(3, 2, [5], [4], 0.5)
    index = GaussianIndexer(3)(fast.key(3))
    args = (fast.X, index, jnp.ones((2, 4)))
    params, state = jax.jit(epinet.init)(fast.key(0), *args)
    out, _ = jax.jit(epinet.apply)(params, state, *args)
    fast.assert_output_starts(out, [-0.342584, -0.950069], [0.153850, 0.014484])


def test_images_are_flattened_after_the_hidden_features() -> None:
    epinet = MLPEpinetWithPrior(2, 3, [])
    images, hidden, index = jnp.ones((2, 4, 4, 1)), jnp.ones((2, 5)), jnp.ones(2)
    params, _ = jax.eval_shape(epinet.init, golden.keys(0), images, index, hidden)
    assert params["train_epinet/~/mlp/~/linear_0"]["w"].shape == (2 + 5 + 16, 6)


@pytest.mark.strict
def test_many_indices_share_what_does_not_depend_on_them() -> None:
    batch, features, width, classes, dim, num_indices = 16, 200, 8, 3, 4, 100
    epinet = MLPEpinetWithPrior(dim, classes, [width], drop_inputs=True)
    hidden = jnp.ones((batch, features))
    params, _ = jax.eval_shape(
        epinet.init, golden.keys(0), hidden, jnp.ones(dim), hidden
    )

    def predict(params: dict, hidden: jax.Array, index: jax.Array) -> jax.Array:
        return epinet.apply(params, {}, hidden, index, hidden)[0].preds  # pyrefly: ignore[bad-return]

    flops = cost.flops(
        jax.vmap(predict, (None, None, 0)), params, hidden, jnp.ones((num_indices, dim))
    )
    shared = cost.mlp_flops(batch, features, width)
    per_index = cost.mlp_flops(batch, width, classes) + cost.mlp_flops(
        width * classes, dim, 1
    )
    assert flops < 2 * (shared + 2 * num_indices * per_index)
    assert shared > 2 * per_index


def test_hidden_features_of_another_rank_raise() -> None:
    epinet = MLPEpinetWithPrior(2, 3, [4], drop_inputs=True)
    with pytest.raises(
        ValueError, match=r"hidden must have shape \[batch, num_hidden\]"
    ):
        epinet.init(golden.keys(0), jnp.ones((2, 3)), jnp.ones(2), jnp.ones((2, 3, 1)))


def test_hidden_features_are_read_by_name() -> None:
    out = OutputWithPrior(
        jnp.zeros(1), extra={"final_out": jnp.ones(2), "b": jnp.zeros(3)}
    )
    np.testing.assert_array_equal(parse_base_hidden(out), np.ones(2))
    np.testing.assert_array_equal(parse_base_hidden(out, "b"), np.zeros(3))


def test_missing_hidden_features_raise_and_name_those_there_are() -> None:
    out = OutputWithPrior(jnp.zeros(1), extra={"hidden_0": jnp.ones(2)})
    with pytest.raises(ValueError, match="must be one of 'hidden_0'; got 'final_out'"):
        parse_base_hidden(out)
    with pytest.raises(ValueError, match="OutputWithPrior"):
        parse_base_hidden(jnp.zeros(1))
