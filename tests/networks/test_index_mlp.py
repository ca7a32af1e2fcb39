import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from enn.networks import index_mlp
from enn.networks.priors import make_random_feat_gp
from tests.support import golden
from tests.support.cost import flops, flops_at_indices, mlp_flops
from tests.support.fast import (
    X,
    assert_output_starts,
    compiled,
    key,
    output,
    param_shapes,
    random_params,
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("index_mlp", lambda: index_mlp.IndexMLPEnn([8, 8, 2], index_dim=3)),
        (
            "index_mlp_gp_prior",
            lambda: index_mlp.IndexMLPWithGpPrior(
                [8, 2],
                input_dim=5,
                num_prior=3,
                num_feat=9,
                gamma=(1.0, 2.0),
                prior_scale=0.7,
            ),
        ),
    ],
)
def test_golden_values(name, make):
    golden.assert_enn_matches(name, make())


@pytest.mark.slow
def test_anchors():
    out = output(index_mlp.IndexMLPEnn([4, 5, 2], 3, 6))
    assert_output_starts(out, [-0.063107, 0.149763], [0, 0])
    out = output(index_mlp.IndexMLPWithGpPrior([4, 2], 3, 2, 5, variance_dim=6))
    assert_output_starts(out, [-1.618677, 0.027545], [-1.320395, 0.367801])


@pytest.mark.parametrize(
    ("sizes", "weights"),
    [
        (
            [4, 5, 2],
            {
                "linear": (6, 4),
                "linear_1": (7, 5),
                "mlp/~/linear_0": (3, 6),
                "mlp_1/~/linear_0": (10, 6),
                "mlp_1/~/linear_1": (6, 2),
                "linear_2": (5, 2),
            },
        ),
        (
            [2],
            {
                "linear": (3, 2),
                "mlp/~/linear_0": (3, 6),
                "mlp_1/~/linear_0": (9, 6),
                "mlp_1/~/linear_1": (6, 2),
            },
        ),
    ],
)
def test_parameter_tree(sizes, weights):
    assert param_shapes(index_mlp.IndexMLPEnn(sizes, 3, 6)) == {
        f"concat_index_mlp/{name}": {"w": shape, "b": shape[1:]}
        for name, shape in weights.items()
    }


def _slow_forward(params, inputs, index, num_hidden):
    def linear(name, *parts):
        layer = params[f"concat_index_mlp/{name}"]
        return np.concatenate(parts, axis=1) @ layer["w"] + layer["b"][None]

    def relu(array):
        return np.maximum(array, 0)

    tiled = np.tile(index, (len(inputs), 1))
    hidden = previous = inputs
    names = ["linear", *(f"linear_{i}" for i in range(1, num_hidden + 1))]
    for name in names[:-1]:
        previous, hidden = hidden, relu(linear(name, hidden, tiled))
    projected = relu(linear("mlp/~/linear_0", inputs))
    log_var = linear("mlp_1/~/linear_0", previous, projected)
    log_var = linear("mlp_1/~/linear_1", relu(log_var))
    return linear(names[-1], hidden), log_var


@pytest.mark.strict
@pytest.mark.parametrize("sizes", [[2], [4, 2], [4, 5, 2]])
def test_forward_concatenates_the_index_to_every_hidden_layer(sizes):
    enn = index_mlp.IndexMLPEnn(sizes, 3, 6)
    inputs = np.random.default_rng(1).normal(size=(5, 2, 3)).astype(np.float32)
    index = enn.indexer(key(2))
    params, state = random_params(enn, inputs)
    out, _ = compiled(enn.apply)(params, state, inputs, index)
    train, log_var = _slow_forward(
        params, np.reshape(inputs, (5, 6)), index, len(sizes) - 1
    )
    np.testing.assert_allclose(out.train, train, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(out.extra["log_var"], log_var, rtol=1e-4, atol=1e-5)


def test_gp_prior_is_linear_in_the_random_entries_of_the_index():
    enn = index_mlp.IndexMLPWithGpPrior(
        [4, 2], 3, num_prior=2, num_feat=5, gamma=(0.5, 2.0), prior_scale=0.3, seed=4
    )
    rng = hk.PRNGSequence(4)
    gps = [make_random_feat_gp(3, 2, 5, next(rng), (0.5, 2.0)) for _ in range(2)]
    out = output(enn, jnp.array([7.0, 2.0, -1.0]))
    expected = 0.3 * (2 * gps[0](X) - gps[1](X))
    np.testing.assert_allclose(out.prior, expected, rtol=1e-4, atol=1e-5)


def test_attributes():
    def forward():
        net = index_mlp.ConcatIndexMLP([4, 5, 2], 3, 6)
        return net.index_dim, net.hiddens, net.output_dim, net.variance_dim

    assert hk.transform(forward).apply({}, None) == (3, [4, 5], 2, 6)


BATCH, FEATURES, INDICES, DIM = 8, 32, 100, 4


def test_what_depends_on_the_inputs_alone_runs_once():
    enn = index_mlp.IndexMLPEnn([32, 32, 2], DIM, variance_dim=16)
    inputs = jnp.ones((BATCH, FEATURES))
    shared = mlp_flops(BATCH, FEATURES, 32)
    per_index = mlp_flops(BATCH, 32, 32, 2) + mlp_flops(1, DIM, 32 + 32)
    # The log variance drops out where only predictions are asked for.
    assert flops_at_indices(enn, inputs) <= 1.1 * (shared + INDICES * per_index)

    shared += mlp_flops(BATCH, FEATURES, 16, 16)
    per_index += mlp_flops(BATCH, 32, 16, 2)
    params, state = random_params(enn, inputs)
    apply = jax.vmap(enn.apply, in_axes=(None, None, None, 0))
    cost = flops(apply, params, state, inputs, jnp.ones((INDICES, DIM)))
    assert cost <= 1.1 * (shared + INDICES * per_index)


@pytest.mark.parametrize(
    ("args", "match"),
    [
        (([], 3, 6), "output_sizes"),
        (([4, 0], 3, 6), "output_sizes"),
        (([4, 2], 0, 6), "index_dim"),
        (([4, 2], 3, 0), "variance_dim"),
    ],
)
def test_wrong_sizes(args, match):
    with pytest.raises(ValueError, match=match):
        index_mlp.IndexMLPEnn(*args)


@pytest.mark.parametrize("num_prior", [0, 1.5])
def test_wrong_number_of_priors(num_prior):
    with pytest.raises(ValueError, match="num_prior"):
        index_mlp.IndexMLPWithGpPrior([4, 2], 3, num_prior, 5)


def test_wrong_index_and_rank():
    enn = index_mlp.IndexMLPEnn([4, 2], 3)
    with pytest.raises(ValueError, match=r"index must have shape \[3\], got \[4\]"):
        enn.init(key(0), X, jnp.ones(4))
    with pytest.raises(ValueError, match=r"inputs must have shape \[batch, \.\.\.\]"):
        enn.init(key(0), X[0], jnp.ones(3))
