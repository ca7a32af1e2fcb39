import functools

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from enn.networks import categorical_ensembles
from enn.networks.categorical_ensembles import CatOutputWithPrior
from enn.networks.ensembles import make_random_gp_ensemble_prior_fns
from enn.networks.forwarders import make_batch_fwd
from tests.support import golden
from tests.support.cost import flops_at_indices, mlp_flops
from tests.support.fast import (
    X,
    assert_output_starts,
    compiled,
    key,
    output,
    random_params,
)

ATOMS = np.linspace(-1, 1, 5)


def _gp_prior(sizes, atoms=ATOMS, **options):
    return categorical_ensembles.CatMLPEnsembleGpPrior(
        sizes, atoms, input_dim=3, num_ensemble=3, num_feat=6, **options
    )


def _mlp_prior(sizes, atoms=ATOMS, **options):
    return categorical_ensembles.CatMLPEnsembleMlpPrior(
        sizes, atoms, X, num_ensemble=3, **options
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "make"),
    [
        (
            "cat_ensemble_gp",
            lambda: categorical_ensembles.CatMLPEnsembleGpPrior(
                [8, 1],
                atoms=np.linspace(-2, 2, 11),
                input_dim=5,
                num_ensemble=3,
                num_feat=10,
                gamma=1.0,
                prior_scale=0.5,
            ),
        ),
        (
            "cat_ensemble_mlp",
            lambda: categorical_ensembles.CatMLPEnsembleMlpPrior(
                [8, 1],
                atoms=np.linspace(-1, 3, 7),
                dummy_input=golden.X5,
                num_ensemble=3,
            ),
        ),
    ],
)
def test_golden_values(name, make):
    report = compiled(functools.partial(golden.enn_report, make()))(golden.X5)
    # Predictions of several indices, [4, 6, 1], were repeated to [4, 6, 4].
    outs = report["outs"]
    outs["preds"] = jnp.tile(outs["preds"], (1, 1, 4))
    golden.assert_matches(name, report)


def test_anchors():
    out = output(_gp_prior([4, 1]), 1)
    assert_output_starts(out, [1.125111, 0.647237], [1.093531, 0.510825])
    out = output(_mlp_prior([4, 2]), 1)
    assert_output_starts(out, [-0.033912, -0.162406], [0.066421, -0.057374])


@pytest.mark.strict
@pytest.mark.parametrize("lead", [(), (3,), (4,), (2, 3)])
@pytest.mark.parametrize("num_outputs", [1, 3])
def test_predictions_are_the_same_before_and_after_vmap(lead, num_outputs):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(*lead, 4, num_outputs, 5)).astype(np.float32)
    atoms = np.sort(rng.normal(size=5)).astype(np.float32)
    probs = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)

    def make(logits):
        return CatOutputWithPrior(logits, extra={"atoms": jnp.asarray(atoms)})

    def preds(logits):
        return make(logits).preds

    for _ in lead:
        make, preds = jax.vmap(make), jax.vmap(preds)
    after, before = jax.jit(lambda x: (make(x).preds, preds(x)))(logits)
    assert after.shape == logits.shape[:-1]
    np.testing.assert_allclose(after, probs @ atoms, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(before, after, rtol=1e-6)
    assert np.all(after >= atoms[0] - 1e-5)
    assert np.all(after <= atoms[-1] + 1e-5)


def test_omitted_prior_has_the_shape_and_type_of_predictions():
    out = CatOutputWithPrior(jnp.ones((4, 2, 3)), extra={"atoms": jnp.ones(3)})
    assert (out.prior.shape, out.prior.dtype) == ((4, 2), jnp.float32)
    np.testing.assert_array_equal(out.prior, 0)


def test_prior_gets_no_gradient():
    def total(prior):
        atoms = {"atoms": jnp.arange(3.0)}
        return jnp.sum(CatOutputWithPrior(jnp.ones((4, 2, 3)), prior, atoms).preds)

    np.testing.assert_array_equal(jax.grad(total)(jnp.ones((4, 2))), 0)


def test_module_tree_and_attributes():
    def forward(x):
        net = categorical_ensembles.CategoricalRegressionMLP((4, 2), ATOMS)
        assert (net.dim_out, net.output_sizes) == (2, [4, 2])
        assert net.atoms.dtype == np.float32
        return net(x)

    transformed = hk.without_apply_rng(hk.transform(forward))
    params = compiled(transformed.init)(key(0), X)
    assert jax.tree.map(jnp.shape, params) == {
        "categorical_regression_mlp/mlp/~/linear_0": {"w": (3, 4), "b": (4,)},
        "categorical_regression_mlp/mlp/~/linear_1": {"w": (4, 10), "b": (10,)},
    }
    out = compiled(transformed.apply)(params, X)
    assert isinstance(out, CatOutputWithPrior)
    assert out.train.shape == (2, 2, 5)
    assert out.extra["atoms"].dtype == jnp.float32


def test_module_can_be_named():
    def forward(x):
        return categorical_ensembles.CategoricalRegressionMLP([1], ATOMS, name="net")(x)

    params = jax.eval_shape(hk.transform(forward).init, key(0), X)
    assert list(params) == ["net/mlp/~/linear_0"]


@functools.cache
def _made(make, num_outputs):
    return make([4, num_outputs])


@pytest.mark.slow
@pytest.mark.strict
@pytest.mark.parametrize("make", [_gp_prior, _mlp_prior])
@pytest.mark.parametrize("num_outputs", [1, 2])
@pytest.mark.parametrize("num_indices", [2, 5])
def test_batch_forward_agrees_with_one_index_at_a_time(make, num_outputs, num_indices):
    enn = _made(make, num_outputs)
    params, state = random_params(enn, X)
    assert params["categorical_regression_mlp/mlp/~/linear_0"]["w"].shape == (3, 3, 4)
    fwd = make_batch_fwd(enn, num_indices, seed=1)(params, state, X)
    assert fwd.shape == (num_indices, 2, num_outputs)
    apply = compiled(enn.apply)
    for key_i, preds in zip(jax.random.split(key(1), num_indices), fwd, strict=True):
        out, _ = apply(params, state, X, enn.indexer(key_i))
        np.testing.assert_allclose(preds, out.preds, rtol=1e-4, atol=1e-5)


def test_gp_prior_adds_its_one_output_to_all():
    enn = _gp_prior([4, 2], prior_scale=0.5, seed=3)
    gp = make_random_gp_ensemble_prior_fns(3, 1, 6, 1.0, 3, seed=3)[2]
    out = output(enn, 2)
    np.testing.assert_allclose(out.prior, 0.5 * np.tile(gp(X), (1, 2)), rtol=1e-5)


def test_many_indices_run_every_member_once():
    inputs = jnp.ones((8, 16))
    enn = categorical_ensembles.CatMLPEnsembleMlpPrior([32, 2], ATOMS, inputs, 10)
    train, prior = mlp_flops(8, 16, 32, 2 * 5), mlp_flops(8, 16, 32, 2)
    # Softmax, weighted sum, prior: at most 10 for an atom of an output at an index.
    predictions = 10 * 100 * 8 * 2 * 5
    assert flops_at_indices(enn, inputs) <= 1.1 * (10 * (train + prior) + predictions)


@pytest.mark.parametrize("make", [_gp_prior, _mlp_prior])
def test_wrong_sizes_and_atoms(make):
    for sizes in ([], [4, 0]):
        with pytest.raises(ValueError, match="output_sizes"):
            make(sizes)
    for atoms in (np.ones((2, 2)), 1.0, []):
        with pytest.raises(ValueError, match=r"atoms must have shape \[num_atoms\]"):
            make([4, 2], atoms)


def test_wrong_rank():
    enn = categorical_ensembles.CatMLPEnsemble([4, 2], ATOMS, 3)
    with pytest.raises(ValueError, match=r"inputs must have shape \[batch, \.\.\.\]"):
        enn.init(key(0), X[0], 0)
