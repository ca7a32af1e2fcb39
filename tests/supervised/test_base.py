import numpy as np
import pytest

from enn.supervised import base
from tests.supervised import stub_experiment

X = np.linspace(-1, 2, 5)[:, None]


@pytest.mark.strict
@pytest.mark.parametrize(
    "make", [stub_experiment.StubExperiment, stub_experiment.OpaqueExperiment]
)
def test_samples_are_predictions_at_the_specified_keys(make):
    samples = base.sample_predictions(make(), X, 3)
    wanted = stub_experiment.slopes(3)[:, None] * X[:, 0]
    assert samples.shape == (3, 5, 1)
    np.testing.assert_allclose(samples[..., 0], wanted, rtol=1e-5)


def test_all_samples_come_from_one_forward_pass():
    """The original calls `predict` once a sample."""
    experiment = stub_experiment.StubExperiment()
    base.sample_predictions(experiment, X, 3)
    assert experiment.num_predicted == 0


@pytest.mark.parametrize("num_sample", [0, 1.5])
def test_wrong_numbers_of_samples_are_errors(num_sample):
    with pytest.raises(ValueError, match="num_sample"):
        base.sample_predictions(stub_experiment.StubExperiment(), X, num_sample)
