import copy
import pickle

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from enn import networks
from enn.networks.base import EpistemicModule, OutputWithPrior

TRAIN = jnp.arange(6.0).reshape(3, 2)


class Shifted(OutputWithPrior):
    __slots__ = ()

    @property
    def preds(self):
        return self.train + self.prior + 100


def test_preds_are_train_plus_prior():
    out = OutputWithPrior(TRAIN, jnp.full((3, 2), 0.5))
    np.testing.assert_array_equal(out.preds, np.arange(6.0).reshape(3, 2) + 0.5)


def test_no_gradient_flows_through_the_prior():
    def total(train, prior):
        return jnp.sum(OutputWithPrior(train, prior).preds ** 2)

    by_train, by_prior = jax.grad(total, argnums=(0, 1))(TRAIN, TRAIN)
    np.testing.assert_array_equal(by_train, 4 * TRAIN)
    np.testing.assert_array_equal(by_prior, 0)


@pytest.mark.strict
@pytest.mark.parametrize("num_indices", [1, 3, 5])
@pytest.mark.parametrize("batch", [1, 3])
def test_an_omitted_prior_is_zero_whatever_is_mapped(num_indices, batch):
    train = jnp.arange(1.0, 1 + num_indices * batch * 2).reshape(num_indices, batch, 2)
    outs = jax.vmap(OutputWithPrior)(train)
    assert outs.prior.shape == outs.preds.shape == train.shape
    np.testing.assert_array_equal(outs.preds, train)
    np.testing.assert_array_equal(outs.prior, 0)


@pytest.mark.strict
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32, jnp.int32])
def test_an_omitted_prior_has_the_dtype_of_train(dtype):
    out = OutputWithPrior(TRAIN.astype(dtype))
    assert out.prior.dtype == out.preds.dtype == dtype


def test_omitted_extra_outputs_are_not_shared():
    first, second = OutputWithPrior(TRAIN), OutputWithPrior(TRAIN)
    first.extra["hidden"] = TRAIN
    assert second.extra == {}
    assert OutputWithPrior(TRAIN, TRAIN).extra == {}


@pytest.mark.parametrize("make", [OutputWithPrior, Shifted])
def test_outputs_keep_their_type_and_fields_as_pytrees(make):
    out = make(train=TRAIN, prior=2 * TRAIN, extra={"hidden": 3 * TRAIN})
    mapped = [
        jax.tree.map(lambda x: x, out),
        jax.jit(lambda x: x)(out),
        jax.vmap(lambda row: row)(out),
        out._replace(extra={"hidden": 3 * TRAIN}),
        copy.deepcopy(out),
    ]
    for other in mapped:
        assert type(other) is make
        np.testing.assert_array_equal(other.preds, out.preds)
        np.testing.assert_array_equal(other.extra["hidden"], 3 * TRAIN)
    assert out._fields == ("train", "prior", "extra")


def test_outputs_survive_pickling():
    loaded = pickle.loads(pickle.dumps(OutputWithPrior(TRAIN, TRAIN, {"a": TRAIN})))
    assert type(loaded) is OutputWithPrior
    np.testing.assert_array_equal(loaded.preds, 2 * TRAIN)


def test_replacing_train_keeps_the_prior():
    out = OutputWithPrior(TRAIN, TRAIN)._replace(train=jnp.zeros((3, 2)))
    np.testing.assert_array_equal(out.preds, TRAIN)


def test_a_module_of_inputs_and_index_must_define_its_call():
    class NoCall(EpistemicModule):
        pass

    def make():
        return NoCall()  # pyrefly: ignore[bad-instantiation]

    with pytest.raises(TypeError, match="abstract"):
        hk.transform(make).init(jax.random.PRNGKey(0))


@pytest.mark.parametrize("protocol", [networks.ApplyNoState, networks.InitNoState])
def test_protocols_tell_callables_apart_at_runtime(protocol):
    assert isinstance(lambda *args: args, protocol)
    assert not isinstance(3, protocol)
