import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from enn.networks.bert.bert import make_bert_enn
from enn.networks.bert.cls_heads import (
    AgentConfig,
    CommonOutputLayer,
    make_baseline_head_enn,
    make_head_enn,
)
from enn.networks.combiners import combine_naive_enn, make_optimized_forward
from tests.networks.bert.tiny import INPUTS, config
from tests.support import golden
from tests.support.cost import flops_at_indices
from tests.support.fast import (
    X,
    assert_output_starts,
    compiled,
    key,
    output,
    random_params,
)

EPINET = AgentConfig(hiddens=(5,), index_dim=2)


@pytest.mark.slow
def test_golden_values():
    heads = {name: make_head_enn(name, 3) for name in ("epinet", "ensemble", "dropout")}
    heads["baseline"] = make_baseline_head_enn(3, is_training=True)

    @compiled
    def report(init_key, index_key, x):
        reports = {}
        for name, head in heads.items():
            index = head.indexer(index_key)
            params, state = head.init(init_key, x, index)
            out, _ = head.apply(params, state, x, index)
            reports[name] = {"params": params, "out": golden.output(out)}
        return reports

    golden.assert_matches("bert_heads", report(key(0), key(1), golden.X5))


def test_anchors():
    assert_output_starts(
        output(make_head_enn("epinet", 4, EPINET)),
        [0.385853, -1.312375],
        [-0.529129, 0.104435],
    )
    for is_training, expected in (
        (True, [-0.014401, 0.002176]),
        (False, [-0.013532, 0.012327]),
    ):
        out = output(make_baseline_head_enn(4, is_training))
        assert_output_starts(out, expected, [0, 0])


@pytest.mark.slow
def test_anchors_on_top_of_bert():
    head = make_head_enn("epinet", 4, EPINET)
    bert = make_bert_enn(config(), is_training=False)
    enn = combine_naive_enn(head, bert)
    params, state = jax.jit(enn.init)(key(0), INPUTS, key(3))
    out, _ = jax.jit(enn.apply)(params, state, INPUTS, key(3))
    assert_output_starts(out, [-0.626921, 2.534231], [0.067208, 0.291013])
    forward = make_optimized_forward(head, bert, 3, key(3))
    samples = forward(params, state, INPUTS)
    assert samples.shape == (3, 2, 4)
    assert_output_starts(samples, [-1.068131, 3.166318])


@pytest.mark.parametrize(
    ("use_extra_projection", "expected"),
    [
        (False, {"output_layer/linear": {"w": (3, 4), "b": (4,)}}),
        (
            True,
            {
                "output_layer/linear": {"w": (3, 3), "b": (3,)},
                "output_layer/linear_1": {"w": (3, 4), "b": (4,)},
            },
        ),
    ],
)
@pytest.mark.parametrize("is_training", [True, False])
def test_output_layer(use_extra_projection, expected, is_training):
    def forward(inputs):
        layer = CommonOutputLayer(4, 0.5, use_extra_projection)
        return layer(inputs, is_training)

    transformed = hk.transform(forward)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape).astype(np.float32),
        jax.eval_shape(transformed.init, key(0), X),
    )
    assert jax.tree.map(jnp.shape, params) == expected
    outs = [compiled(transformed.apply)(params, key(seed), X) for seed in (1, 2)]
    assert outs[0].shape == (2, 4)
    assert np.array_equal(*outs) == (not is_training)
    if not is_training:
        features = np.asarray(X)
        for layer in expected:
            is_last = layer == list(expected)[-1]
            w, b = np.asarray(params[layer]["w"]), np.asarray(params[layer]["b"])
            features = features @ w + b
            features = features if is_last else np.tanh(features)
        np.testing.assert_allclose(outs[0], features, rtol=1e-4, atol=1e-6)


def test_output_layer_weights_are_untruncated_normal():
    def forward(inputs):
        return CommonOutputLayer(200, use_extra_projection=False)(inputs, False)

    inputs = jnp.ones([1, 200])
    params = hk.transform(forward).init(key(0), inputs)
    weights = params["output_layer/linear"]["w"]
    np.testing.assert_allclose(np.std(weights), 0.02, rtol=0.02)
    assert np.abs(weights).max() > 3 * 0.02


def test_default_settings():
    assert AgentConfig() == AgentConfig((50, 50), 10, 0.1, 30, 1)
    params, _ = jax.eval_shape(make_head_enn("ensemble", 3).init, key(0), X, 0)
    assert params["ensemble_mlp/~/ensemble_branch"]["w"].shape == (3, 50, 10)


@pytest.mark.strict
@pytest.mark.parametrize("agent", ["epinet", "ensemble", "dropout"])
def test_settings_reach_the_heads(agent):
    settings = AgentConfig([5], num_ensemble=4, dropout_rate=0.9, index_dim=2)
    head = make_head_enn(agent, 3, settings)
    index = head.indexer(key(1))
    params, state = random_params(head, X)
    out, _ = jax.jit(head.apply)(params, state, X, index)
    assert np.isfinite(jax.tree.leaves(out)[0]).all()
    shapes = jax.tree.map(jnp.shape, params)
    if agent == "epinet":
        assert shapes["train_epinet/~/mlp/~/linear_0"]["w"] == (3 + 2, 5)
        assert shapes["base_mlp/~/linear_1"]["w"] == (5, 3)
    if agent == "ensemble":
        assert shapes["ensemble_mlp/~/linear"]["w"] == (5, 3, 4)
    if agent == "dropout":
        ones = jax.tree.map(jnp.ones_like, params)
        indices = jax.random.split(key(2), 200)
        outs = jax.vmap(lambda z: head.apply(ones, state, X, z)[0])(indices)
        # Ones plus ten times (x summed + 1) for each of five units that is kept.
        kept = (outs[:, 0, 0] - 1) / (10 * (X[0].sum() + 1))
        np.testing.assert_allclose(kept.mean(), 5 * 0.1, atol=0.15)


@pytest.mark.slow
def test_prior_scale():
    outs = [
        output(
            make_head_enn("epinet", 4, AgentConfig((5,), index_dim=2, prior_scale=s))
        )
        for s in (1, 3)
    ]
    np.testing.assert_allclose(outs[1].prior, 3 * outs[0].prior, rtol=1e-5)
    np.testing.assert_array_equal(outs[1].train, outs[0].train)


def test_baseline_head_without_training_runs_once_for_all_indices():
    head = make_baseline_head_enn(4, is_training=False)
    assert flops_at_indices(head, X, 100) == flops_at_indices(head, X, 1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: make_head_enn("hypermodel", 3),
            "agent must be one of 'epinet', 'ensemble', 'dropout'; got 'hypermodel'",
        ),
        (lambda: make_head_enn("epinet", 0), "num_classes"),
        (lambda: make_head_enn("ensemble", 3, AgentConfig(num_ensemble=0)), "num_ens"),
        (lambda: make_head_enn("dropout", 3, AgentConfig(dropout_rate=1)), "dropout"),
        (lambda: output(make_baseline_head_enn(0, True)), "num_classes"),
    ],
)
def test_wrong_settings(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_wrong_dropout_rate_of_the_output_layer():
    with pytest.raises(ValueError, match="dropout_rate"):
        hk.transform(lambda: CommonOutputLayer(3, dropout_rate=1.0)).init(key(0))
