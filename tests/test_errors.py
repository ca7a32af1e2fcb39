"""What new users get wrong meets one line that says what to pass."""

import copy
import pickle
from typing import Any

import equinox as eqx
import haiku as hk
import jax
import numpy as np
import optax
import pytest
from flax import linen

from enn import base, checkpoints, losses, networks, supervised, utils
from enn.datasets import ArrayBatch
from enn.networks import epinet
from tests.support import fast

X = np.ones([8, 3], np.float32)
Y = np.arange(8)[:, None] % 2
ENN = networks.MLPEnsembleMatchedPrior([5, 2], num_ensemble=3)
LOSS = losses.average_single_index_loss(losses.XentLoss(2))
cloudpickle = pytest.importorskip("cloudpickle")


class FlaxNet(linen.Module):
    """A module of Flax."""


class HaikuNet(hk.Module):
    def __call__(self, x: Any) -> Any:
        return hk.Linear(2)(x)


def experiment(enn: Any = ENN, data: Any = None, **kwargs: Any) -> Any:
    data = data or utils.make_batch_iterator(ArrayBatch(x=kwargs.pop("x", X), y=Y))
    loss, optimizer = kwargs.pop("loss", LOSS), kwargs.pop("optimizer", optax.sgd(0.1))
    return supervised.Experiment(enn, loss, optimizer, data, **kwargs)


def one_line(error: type[Exception], message: str, call: Any) -> None:
    with pytest.raises(error, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


SIZES = {
    "output_sizes": [
        lambda: networks.MLPEnsembleMatchedPrior(50, num_ensemble=3),
        lambda: networks.MLPDropoutENN(50, 0.1),
        lambda: networks.make_einsum_ensemble_mlp_enn(50, 3),
        lambda: networks.make_ensemble_mlp_with_prior_enn(50, X, 3),
        lambda: networks.IndexMLPEnn(50, 3),
        lambda: networks.CatMLPEnsembleGpPrior(50, [-1.0, 1.0], 3, 3, 3),
        lambda: epinet.make_mlp_epinet(50, [50], 3),
    ],
    "epinet_hiddens": [
        lambda: epinet.make_mlp_epinet([50], 50, 3),
        lambda: epinet.MLPEpinetWithPrior(3, 2, 50),
    ],
    "prior_epinet_hiddens": [
        lambda: epinet.make_mlp_epinet([50], [50], 3, prior_epinet_hiddens=50),
        lambda: epinet.MLPEpinetWithPrior(3, 2, [50], 50),
    ],
    "vgg_output_channels": [
        lambda: fast.abstract_variables(
            networks.EnsembleVGGENN(2, 2, vgg_output_channels=50), np.ones([1, 4, 4, 1])
        )
    ],
    "lenet_output_channels": [
        lambda: fast.abstract_variables(
            networks.EnsembleLeNet5ENN(2, 2, 50), np.ones([1, 4, 4, 1])
        )
    ],
}


@pytest.mark.parametrize("name", SIZES)
def test_one_size_in_place_of_a_list(name: str) -> None:
    for call in SIZES[name]:
        one_line(
            ValueError, rf"^{name} must be a list, .* such as \[50\]; got 50", call
        )


def test_optimisers_and_losses_that_were_not_called() -> None:
    message = r"such as optax\.adam\(1e-3\); got the function adam: call it"
    one_line(TypeError, message, lambda: experiment(optimizer=optax.adam))
    one_line(TypeError, "got 0.1", lambda: experiment(optimizer=0.1))
    message = "got the class XentLoss: call it first"
    one_line(TypeError, message, lambda: experiment(loss=losses.XentLoss))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: experiment(FlaxNet), TypeError, "the class FlaxNet. .*from_flax"),
        (lambda: experiment(FlaxNet()), TypeError, "got FlaxNet. .*from_flax"),
        (lambda: networks.from_flax(FlaxNet), ValueError, "an instance of flax.linen"),
        (
            lambda: networks.from_equinox(eqx.nn.Identity()),
            ValueError,
            "as `lambda key: module`",
        ),
        (
            lambda: networks.wrap_net_fn_as_enn(HaikuNet),
            TypeError,
            r"got the class HaikuNet: pass lambda x: HaikuNet\(\.\.\.\)\(x\)",
        ),
        (
            lambda: networks.wrap_stochastic_fn_as_enn(HaikuNet),
            TypeError,
            "got the class HaikuNet",
        ),
        *(
            (call, TypeError, r"such as hk\.without_apply_rng\(hk\.transform\(net_fn")
            for call in (
                lambda: networks.EnsembleWithState(HaikuNet, 3),
                lambda: networks.Ensemble(HaikuNet, 3),
                lambda: networks.wrap_transformed_as_enn(lambda x: x),
            )
        ),
    ],
)
def test_modules_and_classes_in_place_of_networks(
    call: Any, error: Any, message: str
) -> None:
    one_line(error, message, call)


@pytest.mark.slow
def test_lists_of_lists_as_inputs() -> None:
    rows, key = X.tolist(), jax.random.key(0)
    for call in (
        lambda: experiment(x=rows),
        lambda: supervised.Experiment(ENN, LOSS, optax.sgd(0.1), (rows, Y)),
        lambda: experiment(init_x=rows),
        lambda: experiment().predict(rows, key),
        lambda: ENN.init(key, rows, 0),
        lambda: networks.make_batch_fwd(ENN, 2)(*fast.init(ENN, X), rows),
    ):
        one_line(ValueError, r"got a list: pass np\.asarray\(", call)


@pytest.mark.slow
def test_inputs_without_features() -> None:
    message = r"x must be \[batch, \.\.\.\], got shape \[8\].* pass x\[:, None\]"
    enn = networks.MLPEnsembleMatchedPrior([5, 2], num_ensemble=3)
    one_line(ValueError, message, lambda: experiment(enn, x=X[:, 0]))
    # A network may take numbers or words without an axis of features.
    embeds = networks.wrap_net_fn_as_enn(lambda x: hk.Embed(8, 2)(x.astype(int)))
    assert experiment(embeds, x=X[:, 0]).step == 0


def test_tuples_from_the_network() -> None:
    enn = networks.wrap_net_fn_as_enn(lambda x: (hk.Linear(2)(x), x))
    message = r"or an OutputWithPrior, got a tuple of 2: .* extra="
    one_line(TypeError, message, lambda: experiment(enn))
    variables = fast.init(enn, X)
    forward = networks.make_batch_fwd(enn, 2)
    one_line(TypeError, message, lambda: forward(*variables, X))
    one_line(TypeError, message, lambda: networks.parse_to_output_with_prior((X, X)))


def test_hidden_layers_that_do_not_exist() -> None:
    out = networks.OutputWithPrior(X, extra={"final_out": X, "torso": X})
    message = "one of 'final_out', 'torso'; got 'hidden'"
    one_line(ValueError, message, lambda: epinet.parse_base_hidden(out, "hidden"))


def test_an_axis_of_devices() -> None:
    # The rows of images that were transposed twice stand on their last axis.
    batch = ArrayBatch(x=X.T[None], y=Y.T, data_index=np.arange(8)[None])
    message = r"axis of devices, .* \[1, 8\], .*train_data_parallelism=False"
    one_line(ValueError, message, lambda: experiment(data=iter([batch])))


def _module_level_apply(params: Any, state: Any, inputs: Any, index: Any) -> Any:
    return inputs, state


def test_pickled_networks() -> None:
    message = "cannot be pickled: .*save_pretrained"
    one_line(TypeError, message, lambda: pickle.dumps(ENN))
    one_line(TypeError, message, lambda: pickle.dumps({"enn": [ENN]}))
    # What can be done goes on to work.
    for same in (copy.copy(ENN), copy.deepcopy(ENN), cloudpickle.dumps(ENN)):
        same = cloudpickle.loads(same) if isinstance(same, bytes) else same
        assert same.indexer == ENN.indexer
    importable = base.EpistemicNetwork(
        _module_level_apply, _module_level_apply, ENN.indexer
    )
    assert pickle.loads(pickle.dumps(importable)).apply is _module_level_apply


def test_parameters_in_a_list(tmp_path: Any) -> None:
    for params, message in [
        ([X], r"params must be a dict of arrays, got a list: name .*enumerate\(params"),
        ({"a": [X]}, r"params a must be a dict .*, got a list: .*enumerate\(a"),
        (({}, {}), "tuple of 2: pass parameters and state one after the other"),
    ]:
        call = lambda params=params: checkpoints.save_pretrained(tmp_path, params)  # noqa: E731
        one_line(ValueError, message, call)


def test_tuples_of_the_wrong_length() -> None:
    message = r"a pair \(x, y\), .* got a tuple of 3"
    one_line(ValueError, message, lambda: experiment(data=iter([(X, Y, Y)])))
