import jax
import jax.numpy as jnp
import numpy as np
import pytest

from enn import _checks


@pytest.mark.parametrize("value", [1, 7, np.int64(3), np.array(4), jnp.array(5)])
def test_positive_int_returns_an_int(value):
    number = _checks.positive_int("size", value)
    assert number == value
    assert type(number) is int


@pytest.mark.parametrize(
    "value", [0, -1, 1.0, 2.5, True, np.True_, None, "3", [3], np.array([1, 2])]
)
def test_positive_int_refuses_anything_else(value):
    with pytest.raises(ValueError, match=r"^size must be an integer >= 1, got "):
        _checks.positive_int("size", value)


def test_one_of_names_the_value_and_the_choices():
    _checks.one_of("kind", "b", ("a", "b"))
    _checks.one_of("kind", "b", {"a": 1, "b": 2})
    with pytest.raises(ValueError, match=r"^kind must be one of 'a', 'b'; got 'c'\.$"):
        _checks.one_of("kind", "c", ("a", "b"))


def test_one_of_refuses_an_unhashable_value():
    with pytest.raises(ValueError, match=r"^kind must be one of 'a'; got \['a'\]\.$"):
        _checks.one_of("kind", ["a"], {"a": 1})


def test_arguments_inside_jit_and_vmap_are_not_concrete():
    seen = []

    def look(x):
        seen.append(_checks.is_concrete(x))
        seen.append(_checks.is_concrete(2, np.ones(2), x))
        return x

    assert _checks.is_concrete(1, np.ones(2), jnp.ones(2))
    jax.jit(look)(1.0)
    jax.vmap(look)(jnp.ones(2))
    assert seen == [False] * 4


@pytest.mark.parametrize("array", [np.ones((4, 1)), jnp.ones((2, 1)), [[1], [2]]])
def test_shape_accepts_any_size_for_none(array):
    _checks.shape("labels", array, (None, 1), "[batch, 1]")


@pytest.mark.parametrize("array", [np.ones(4), np.ones((4, 2)), np.ones((4, 1, 1)), 3])
def test_shape_says_which_axes_are_wanted(array):
    wanted = r"^labels must have shape \[batch, 1\], got \["
    with pytest.raises(ValueError, match=wanted):
        _checks.shape("labels", array, (None, 1), "[batch, 1]")


@pytest.mark.parametrize("array", [np.arange(3), np.arange(3)[:, None]])
def test_a_value_for_each_row_becomes_a_column(array):
    column = _checks.as_column("labels", array)
    np.testing.assert_array_equal(column, [[0], [1], [2]])


@pytest.mark.parametrize("array", [np.ones((4, 2)), np.ones((4, 1, 1, 1)), 3])
def test_another_shape_is_no_column(array):
    with pytest.raises(ValueError, match=r"^labels must have shape \[batch, 1\], got"):
        _checks.as_column("labels", array)


def test_an_axis_of_devices_is_named():
    with pytest.raises(ValueError, match=r"axis of devices .* got \[2, 30, 1\]"):
        _checks.as_column("batch.y", np.ones((2, 30, 1)))


@pytest.mark.parametrize("value", [0, 3, np.int8(2)])
def test_non_negative_integers_pass(value):
    assert _checks.non_negative_int("num", value) == value


@pytest.mark.parametrize("value", [-1, 1.5, True, "2"])
def test_anything_else_is_no_non_negative_integer(value):
    with pytest.raises(ValueError, match="num must be an integer >= 0, got"):
        _checks.non_negative_int("num", value)


def test_shape_accepts_keys_of_both_kinds():
    _checks.shape("key", jax.random.key(0), (), "[]")
    _checks.shape("key", jax.random.PRNGKey(0), (2,), "[2]")


@pytest.mark.parametrize(
    "labels", [[[0], [2]], np.array([0.0, 1.0]), jnp.array([[1]]), 2, np.zeros((0, 1))]
)
def test_class_labels_accepts_integers_in_range_of_any_type(labels):
    _checks.class_labels(labels, 3)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([[0], [3], [4]], r"in \[0, 3\), got 3 in row 1\."),
        (np.array([0.0, 1.0, 0.5]), r"got 0\.5 in row 2\."),
        (jnp.array([-1]), r"got -1 in row 0\."),
        ([np.nan], r"got nan in row 0\."),
        ([[0, 1], [2, 1], [1, 7]], r"got 7 in row 2\."),
        (5, r"got 5 in row 0\."),
    ],
)
def test_class_labels_names_the_first_wrong_label(labels, message):
    with pytest.raises(ValueError, match=message):
        _checks.class_labels(labels, 3)


def test_class_labels_are_not_looked_at_inside_jit():
    def check(labels):
        _checks.class_labels(labels, 3)
        return labels

    assert jax.jit(check)(jnp.array([9])) == 9
