"""Laplace approximations of whatever network a user has trained."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from enn import checkpoints, networks, posteriors
from enn.datasets import ArrayBatch
from enn.networks.bert import (
    BertConfig,
    BertInput,
    make_baseline_head_enn,
    make_bert_enn,
)
from tests.support import resnets

pytestmark = pytest.mark.slow

X = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
LABELS = np.array([[0], [1], [1], [0], [1], [0]])
FEATURES = {"parse_hidden": lambda out: out.extra["features"]}


class _Flax(linen.Module):
    @linen.compact
    def __call__(self, x: Any) -> Any:
        hidden = linen.BatchNorm(use_running_average=True)(linen.Dense(4)(x))
        extra = {"features": hidden}
        return networks.OutputWithPrior(linen.Dense(2)(hidden), extra=extra)


class _Nnx(nnx.Module):
    def __init__(self, rngs: Any):
        self.hidden = nnx.Linear(3, 4, rngs=rngs)
        self.last = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        hidden = jax.nn.relu(self.hidden(x))
        return networks.OutputWithPrior(self.last(hidden), extra={"features": hidden})


class _Equinox(eqx.Module):
    hidden: eqx.nn.Linear
    last: eqx.nn.Linear

    def __init__(self, key: Any):
        self.hidden = eqx.nn.Linear(3, 4, key=key)
        self.last = eqx.nn.Linear(4, 2, key=key)

    def __call__(self, x: Any) -> Any:
        hidden = jax.nn.relu(self.hidden(x))
        return networks.OutputWithPrior(self.last(hidden), extra={"features": hidden})


def _bert() -> Any:
    config = BertConfig(
        vocab_size=8,
        hidden_size=6,
        num_hidden_layers=1,
        num_attention_heads=3,
        intermediate_size=6,
        max_position_embeddings=8,
        type_vocab_size=2,
    )
    return networks.combine_naive_enn(
        make_baseline_head_enn(2, is_training=False),
        make_bert_enn(config, is_training=False),
    )


TOKENS = BertInput(
    token_ids=np.arange(30).reshape(6, 5) % 8,
    segment_ids=np.zeros((6, 5), int),
    input_mask=np.ones((6, 5), int),
)


@dataclasses.dataclass(frozen=True)
class Case:
    """A trained network, its inputs, and how to find its features."""

    make: Callable[[], Any]
    inputs: Any
    find: dict[str, Any]
    index: Any = None


CASES = {
    "flax": Case(lambda: networks.from_flax(_Flax()), X, FEATURES),
    "nnx": Case(lambda: networks.from_nnx(_Nnx), X, FEATURES),
    "equinox": Case(lambda: networks.from_equinox(_Equinox), X, FEATURES),
    "resnet": Case(
        lambda: networks.EnsembleResNetENN(
            2, 2, is_training=False, config=resnets.TINY
        ),
        np.stack([resnets.IMAGES[0]] * 6) * X[:, :1, None, None],
        {"last_layer": "res_net/~/final_fc"},
        index=1,
    ),
    "bert": Case(_bert, TOKENS, {"last_layer": "output_layer/linear"}),
    "dropout": Case(
        lambda: networks.MLPDropoutENN([4, 2], 0.0),
        X,
        {"last_layer": "linear_1"},
    ),
}


def _trained(case: Case) -> tuple[Any, Any, Any]:
    enn = case.make()
    index = enn.indexer(jax.random.PRNGKey(0)) if case.index is None else case.index
    return enn, index, jax.jit(enn.init)(jax.random.PRNGKey(1), case.inputs, index)


@pytest.mark.parametrize("name", CASES)
def test_a_last_layer_on_any_network(name: str, tmp_path: pathlib.Path) -> None:
    case = CASES[name]
    enn, index, (params, state) = _trained(case)
    data = ArrayBatch(x=case.inputs, y=LABELS)
    posterior = posteriors.fit_laplace(
        enn, params, state, data, "categorical", index=case.index, **case.find
    )
    assert (posterior.log_marginal_likelihood is None) == ("parse_hidden" in case.find)
    # Draws lie around the trained network, and say the same after a save.
    zero = jnp.zeros(posterior.enn.indexer.index_dim)
    mean, _ = posterior.enn.apply(posterior.params, posterior.state, case.inputs, zero)
    expected, _ = enn.apply(params, state, case.inputs, index)
    expected = networks.parse_net_output(expected)
    np.testing.assert_allclose(
        networks.parse_net_output(mean), expected, rtol=1e-4, atol=1e-5
    )
    forward = networks.make_batch_fwd(posterior.enn, num_enn_samples=10)
    samples = forward(posterior.params, posterior.state, case.inputs)
    assert samples.shape == (10, 6, 2)
    assert (np.std(samples, axis=0) > 0.01).all()
    checkpoints.save_pretrained(tmp_path / "fit", posterior.params, posterior.state)
    loaded = checkpoints.load_pretrained(tmp_path / "fit")
    np.testing.assert_array_equal(forward(*loaded, case.inputs), samples)


@pytest.mark.parametrize("name", ["flax", "equinox", "bert"])
def test_all_weights_of_any_network(name: str) -> None:
    case = CASES[name]
    enn, index, (params, state) = _trained(case)
    posterior = posteriors.fit_linearised_laplace(
        enn,
        params,
        state,
        ArrayBatch(x=case.inputs, y=LABELS),
        "categorical",
        structure="diagonal",
    )
    zero = jnp.zeros(posterior.enn.indexer.index_dim)
    mean, _ = posterior.enn.apply(posterior.params, posterior.state, case.inputs, zero)
    expected, _ = enn.apply(params, state, case.inputs, index)
    np.testing.assert_allclose(
        networks.parse_net_output(mean), networks.parse_net_output(expected), rtol=1e-4
    )
    assert np.isfinite(posterior.log_marginal_likelihood)
