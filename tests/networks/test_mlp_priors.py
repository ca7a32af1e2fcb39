import haiku as hk
import numpy as np
import pytest

from enn import networks
from tests.support.fast import X, compiled


def _close(actual, expected, rtol=1e-5):
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=1e-6)


def test_mlp_priors_have_the_parameters_of_successive_keys():
    w_init = hk.initializers.RandomNormal(0.3)
    b_init = hk.initializers.Constant(0.2)
    fns = networks.make_mlp_ensemble_prior_fns([4, 2], X, 3, 8, w_init, b_init)
    mlp = hk.without_apply_rng(
        hk.transform(lambda x: hk.nets.MLP([4, 2], w_init, b_init)(x))
    )
    rng = hk.PRNGSequence(8)
    assert len(fns) == 3
    for fn in fns:
        params = compiled(mlp.init)(next(rng), X)
        _close(compiled(fn)(X), compiled(mlp.apply)(params, X))


def test_mlp_priors_take_inputs_of_their_size_only():
    fns = networks.make_mlp_ensemble_prior_fns([4, 2], np.ones((1, 2, 3)), 2)
    assert fns[0](np.ones((5, 6), np.float32)).shape == (5, 2)
    with pytest.raises(ValueError, match=r"6 features, got shape \[5, 4\]"):
        fns[1](np.ones((5, 4), np.float32))
