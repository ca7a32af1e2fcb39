"""Golden losses of networks that only these losses are for."""

import jax.numpy as jnp
import numpy as np
import pytest

from enn import losses, networks
from enn.networks import bbb, categorical_ensembles, hypermodels
from tests.losses import cases
from tests.support import golden


@pytest.mark.slow
def test_evidence_lower_bounds():
    report = {}
    enn = bbb.make_bbb_enn([4, 3], golden.X5)
    for name, kl in {
        "analytic": losses.get_analytical_diagonal_linear_model_prior_kl_fn(10, 1.5),
        "sampled": losses.get_sample_based_model_prior_kl_fn(10, 1.0, 0.3, 0.7),
    }.items():
        likelihood = losses.get_categorical_loglike_fn(3)
        elbo = losses.ElboLoss(likelihood, kl, temperature=2.0, input_dim=5)
        loss_fn = losses.average_single_index_loss(elbo, 3)
        batch = golden.batch("classification")
        report[name] = cases.evaluate(loss_fn, enn, batch)
    hyper = hypermodels.MLPHypermodel(
        hypermodels.tempered_mlp([4, 1]),
        golden.X5,
        networks.GaussianIndexer(3),
        scale=False,
    )
    kl = losses.get_analytical_linear_model_prior_kl_fn(10, 0.8)
    elbo = losses.ElboLoss(losses.get_awgn_loglike_fn(0.5), kl)
    loss_fn = losses.average_single_index_loss(elbo, 3)
    batch = golden.batch("regression")
    report["linear"] = cases.evaluate(loss_fn, hyper, batch)
    golden.assert_matches("loss_vi", report)


@pytest.mark.slow
def test_categorical_regression():
    enn = categorical_ensembles.CatMLPEnsembleMlpPrior(
        [8, 1], np.linspace(-2, 2, 11), golden.X5, 3
    )
    loss_fn = losses.average_single_index_loss(losses.Cat2HotRegression(), 2)
    report = cases.evaluate(loss_fn, enn, golden.batch("regression"))
    two_hot = losses.transform_to_2hot(jnp.array(0.37), jnp.linspace(-1, 1, 5))
    golden.assert_matches("loss_categorical_regression", {**report, "two_hot": two_hot})
