from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from enn.networks.checkpoints import EnnCheckpoint
from enn.networks.epinet.resnet import (
    ResnetFinalEpinet,
    ResnetFinalEpinetConfig,
    make_checkpoint_from_config,
)
from enn.networks.resnet.base import EnsembleResNetENN
from tests.networks.epinet.toys import Checkpoint, X, stateful_base
from tests.support import cost, fast, golden
from tests.support.resnets import IMAGES, TINY


def _prior_fn(inputs: jax.Array, index: jax.Array) -> jax.Array:
    return jnp.sum(index) * inputs[:, :2]


def _config(checkpoint: EnnCheckpoint, **kwargs: Any) -> ResnetFinalEpinetConfig:
    return ResnetFinalEpinetConfig(checkpoint, 3, 2, [4], **kwargs)


def _resnet(num_ensemble: int = 1) -> Checkpoint:
    enn = EnsembleResNetENN(2, num_ensemble, is_training=False, config=TINY)
    return Checkpoint(enn, IMAGES)


def test_tree_of_an_epinet_on_a_residual_network() -> None:
    config = _config(_resnet().checkpoint, prior_epinet_hiddens=[5, 6])
    params, state = fast.shapes(ResnetFinalEpinet(config), IMAGES)
    assert params == {
        "train_epinet/~/mlp/~/linear_0": {"w": (16 + 3, 4), "b": (4,)},
        "train_epinet/~/mlp/~/linear_1": {"w": (4, 2 * 3), "b": (6,)},
        "prior_epinet/~/mlp/~/linear_0": {"w": (16 + 3, 5), "b": (5,)},
        "prior_epinet/~/mlp/~/linear_1": {"w": (5, 6), "b": (6,)},
        "prior_epinet/~/mlp/~/linear_2": {"w": (6, 2 * 3), "b": (6,)},
    }
    assert state == {}


@pytest.mark.parametrize("num_ensemble", [1, 2])
def test_residual_network_runs_once_for_many_indices(num_ensemble: int) -> None:
    saved = _resnet(num_ensemble)
    enn = ResnetFinalEpinet(_config(saved.checkpoint))
    resnet = cost.flops_at_indices(saved.enn, IMAGES, None)
    one = cost.flops_at_indices(enn, IMAGES, None)
    many = cost.flops_at_indices(enn, IMAGES, 100)
    assert one < 1.1 * resnet
    assert many < 1.2 * resnet


@pytest.mark.strict
def test_scales_of_the_config() -> None:
    saved = Checkpoint(stateful_base())
    plain, scaled = (
        ResnetFinalEpinet(_config(saved.checkpoint, **kwargs))
        for kwargs in (
            {},
            {
                "base_logits_scale": 2.0,
                "epi_prior_scale": 3.0,
                "add_prior_scale": 0.5,
                "prior_fn_ctor": lambda: _prior_fn,
            },
        )
    )
    index = jnp.array([1.0, 2.0, -0.5])
    params, state = fast.random_params(plain, X)
    base_out, _ = jax.jit(saved.enn.apply)(*saved.variables, X, None)
    out, _ = jax.jit(plain.apply)(params, state, X, index)
    scaled_out, _ = jax.jit(scaled.apply)(params, state, X, index)
    np.testing.assert_allclose(scaled_out.train, base_out.train + out.train, atol=1e-5)
    epinet_prior = out.prior - base_out.prior
    expected = 2 * base_out.prior + 3 * epinet_prior + 0.5 * 2.5 * X[:, :2]
    np.testing.assert_allclose(scaled_out.prior, expected, atol=1e-5)


def test_checkpoint_holds_what_the_config_says() -> None:
    saved = Checkpoint(stateful_base())
    config = _config(saved.checkpoint, base_logits_scale=2.0, base_index=1)

    def load_fn() -> tuple[dict, dict]:
        return {}, {}

    checkpoint = make_checkpoint_from_config("epinet", load_fn, config, 0.7)
    assert checkpoint.name == "epinet"
    assert checkpoint.load_fn is load_fn
    assert checkpoint.parse_hidden is config.parse_hidden
    assert checkpoint.base_cpt is saved.checkpoint
    assert (checkpoint.base_index, checkpoint.base_scale) == (1, 2.0)
    assert checkpoint.tuned_eval_temperature == 0.7
    # Making the epinet needs no base network.
    epinet = checkpoint.epinet_ctor()
    args = (X, jnp.ones(3), jnp.ones((4, 5)))
    params, _ = jax.eval_shape(epinet.init, golden.keys(0), *args)
    assert params["train_epinet/~/mlp/~/linear_0"]["w"].shape == (5 + 3, 4)
    assert saved.num_loads == 0


@pytest.mark.slow
def test_checkpoint_of_a_trained_base_reads_it_with_the_epinet() -> None:
    saved = Checkpoint(stateful_base())
    config = _config(saved.checkpoint, freeze_base=False)
    enn = ResnetFinalEpinet(config)
    trained = fast.random_params(enn, X, seed=11)
    checkpoint = make_checkpoint_from_config("epinet", lambda: trained, config)
    index = jnp.array([1.0, 2.0, -0.5])
    out, _ = jax.jit(enn.apply)(*trained, X, index)
    base_cpt = checkpoint.base_cpt
    base_out, _ = base_cpt.enn_ctor().apply(*base_cpt.load_fn(), X, None)
    epinet_out, _ = checkpoint.epinet_ctor().apply(
        *checkpoint.load_fn(), X, index, checkpoint.parse_hidden(base_out)
    )
    np.testing.assert_allclose(out.preds, base_out.preds + epinet_out.preds, atol=1e-5)


@pytest.mark.slow
def test_base_index_of_the_config_is_used() -> None:
    saved = _resnet(2)
    outs = []
    for base_index in (0, 1):
        enn = ResnetFinalEpinet(_config(saved.checkpoint, base_index=base_index))
        variables = fast.random_params(enn, IMAGES)
        apply = jax.jit(enn.apply)
        outs.append(apply(*variables, IMAGES, jnp.zeros(3))[0].train)
        base_apply = jax.jit(saved.enn.apply)
        expected = base_apply(*saved.variables, IMAGES, base_index)[0].train
        np.testing.assert_allclose(outs[-1], expected, rtol=1e-4, atol=1e-4)
    assert not np.allclose(*outs)


def test_prior_function_of_factor_zero_is_not_made() -> None:
    def prior_fn_ctor() -> Any:
        raise AssertionError

    config = _config(
        Checkpoint(stateful_base()).checkpoint,
        prior_fn_ctor=prior_fn_ctor,
        add_prior_scale=0.0,
    )
    make_checkpoint_from_config("epinet", lambda: ({}, {}), config).epinet_ctor()
