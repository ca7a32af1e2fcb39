import collections
import pathlib
import pickle
import pickletools
import tracemalloc
from typing import Any

import dill
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from haiku._src.data_structures import FlatMapping, frozendict

from enn.checkpoints.unpickling import UnsafePickleError, load_arrays
from tests.checkpoints import hostile

DTYPES = ["bool", "int8", "uint16", "int32", "float16", "float32", "complex64"]


def _tree() -> dict[str, Any]:
    draw = np.random.default_rng(0)
    return {
        "params": {
            "net/~/linear": {
                "w": draw.normal(size=(1, 2, 3)).astype(np.float32),
                "b": np.asfortranarray(draw.normal(size=(3, 2))),
                "half": draw.normal(size=3).astype(jnp.bfloat16),
                "swapped": np.arange(3, dtype=">i4"),
                "empty": np.zeros((0, 4), np.float32),
                "scalar": np.array(2.5),
                "strided": np.arange(12.0).reshape(3, 4)[:, ::2],
            },
            **{dtype: {"w": np.ones(2, dtype)} for dtype in DTYPES},
        },
        "state": {"counter": np.int32(7), "flag": np.bool_(True), "none": None},
        "plain": [1, -(2**70), 2.5, True, "text", b"bytes", (), (1,), (1, 2, 3, 4)],
    }


def assert_same_tree(got: Any, wanted: Any) -> None:
    if isinstance(wanted, np.ndarray | np.generic | jax.Array):
        assert isinstance(got, np.ndarray)
        assert got.dtype == wanted.dtype.newbyteorder("=")
        np.testing.assert_array_equal(got, wanted)
    elif isinstance(wanted, collections.abc.Mapping):
        assert type(got) is dict
        assert list(got) == list(wanted)
        for key in wanted:
            assert_same_tree(got[key], wanted[key])
    elif isinstance(wanted, list | tuple):
        assert type(got) is type(wanted)
        assert len(got) == len(wanted)
        for pair in zip(got, wanted, strict=True):
            assert_same_tree(*pair)
    else:
        assert got == wanted


@pytest.mark.parametrize("library", [dill, pickle])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_arrays_and_plain_containers_load(library: Any, protocol: int) -> None:
    tree = _tree()
    if protocol == 2:
        # Its empty bytes are a call of `bytes`.
        del tree["params"]["net/~/linear"]["empty"]
    assert_same_tree(load_arrays(library.dumps(tree, protocol)), tree)


def test_text_protocol_loads() -> None:
    tree = {"params": {"w": np.arange(3.0), "n": [1, 2.5, None, True, (1,)]}}
    assert_same_tree(load_arrays(pickle.dumps(tree, 0)), tree)


@pytest.mark.parametrize("library", [dill, pickle])
@pytest.mark.parametrize(
    "container",
    [
        FlatMapping,
        frozendict,
        collections.OrderedDict,
        hk.data_structures.to_immutable_dict,
    ],
)
def test_containers_of_haiku_become_dicts(library: Any, container: Any) -> None:
    leaves = container({"w": np.ones(2), "b": np.zeros(1)})
    tree = {"params": container({"net/~/linear": leaves}), "state": container({})}
    for protocol in (3, 4, 5):
        loaded = load_arrays(library.dumps(tree, protocol))
        assert list(loaded["params"]["net/~/linear"]) in (["w", "b"], ["b", "w"])
        for name in ("w", "b"):
            np.testing.assert_array_equal(
                loaded["params"]["net/~/linear"][name], leaves[name]
            )
        assert type(loaded["params"]["net/~/linear"]) is type(loaded["state"]) is dict


@pytest.mark.parametrize("library", [dill, pickle])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int32])
def test_arrays_of_jax_load(library: Any, dtype: Any) -> None:
    tree = {"w": jnp.arange(6, dtype=dtype).reshape(2, 3)}
    for protocol in (3, 4, 5):
        assert_same_tree(load_arrays(library.dumps(tree, protocol)), tree)


def _renamed(data: bytes, old: str, new: str) -> bytes:
    """Returns the pickle with a string of protocol 4 replaced, and no frames."""
    parts = []
    ops = list(pickletools.genops(data))
    for (opcode, arg, start), (_, _, end) in zip(
        ops, [*ops[1:], (None, None, len(data))], strict=True
    ):
        if opcode.name == "SHORT_BINUNICODE" and arg == old:
            text = new.encode()
            parts.append(b"\x8c" + bytes([len(text)]) + text)
        elif opcode.name != "FRAME":
            parts.append(data[start:end])
    return b"".join(parts)


@pytest.mark.parametrize("core", ["numpy.core", "numpy._core"])
def test_module_paths_of_numpy_1_and_2_load(core: str) -> None:
    tree = {"w": np.arange(3.0), "n": np.float32(2)}
    here = np._core.multiarray.__name__.removesuffix(".multiarray")
    for library, protocol in [(dill, 4), (pickle, 4), (pickle, 5)]:
        data = library.dumps(tree, protocol)
        for module in ("multiarray", "numeric"):
            data = _renamed(data, f"{here}.{module}", f"{core}.{module}")
        assert f"{core}.multiarray".encode() in data
        assert_same_tree(load_arrays(data), tree)


@pytest.mark.parametrize(
    ("module", "name", "old_module", "old_name"),
    [
        ("dill._dill", "_create_array", "dill.dill", "_create_array"),
        (
            "jax._src.array",
            "_reconstruct_array",
            "jax._src.device_array",
            "reconstruct_device_array",
        ),
    ],
)
def test_older_writers_load(
    module: str, name: str, old_module: str, old_name: str
) -> None:
    make = np.asarray if "dill" in module else jnp.asarray
    tree = {"w": make([1.0, 2.0], dtype=np.float32)}
    data = _renamed(_renamed(dill.dumps(tree, 4), module, old_module), name, old_name)
    assert old_module.encode() in data
    assert_same_tree(load_arrays(data), {"w": np.array([1.0, 2.0], np.float32)})


def test_shared_arrays_are_one_array() -> None:
    array = np.ones(3)
    loaded = load_arrays(dill.dumps({"a": array, "b": [array]}))
    assert loaded["a"] is loaded["b"][0]


def test_further_names_can_be_allowed() -> None:
    data = pickle.dumps(collections.Counter("abca"))
    with pytest.raises(UnsafePickleError, match=r"global 'collections\.Counter'"):
        load_arrays(data)
    loaded = load_arrays(data, allow={"collections.Counter": dict})
    assert loaded == {"a": 2, "b": 1, "c": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return tmp_path_factory.mktemp("hostile")


@pytest.fixture(scope="module")
def cases(folder: pathlib.Path) -> dict[str, tuple[bytes, str]]:
    return hostile.cases(folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", hostile.cases(pathlib.Path("folder")))
def test_refused_and_nothing_runs(
    name: str, cases: dict[str, tuple[bytes, str]], folder: pathlib.Path
) -> None:
    data, message = cases[name]
    tracemalloc.start()
    with pytest.raises(UnsafePickleError, match=message):
        load_arrays(data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # An empty list takes 64 bytes and one to be made.
    assert peak < 150 * len(data) + 2**20
    assert list(folder.iterdir()) == []


_KINDS = (dict, list, tuple, str, bytes, bytearray, int, float, bool, type(None))


def _kinds(tree: Any) -> set[type]:
    children = tree.values() if isinstance(tree, dict) else tree
    if not isinstance(tree, dict | list | tuple):
        return {type(tree)}
    return {type(tree)}.union(*map(_kinds, children))


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_whatever_is_in_a_file_loads_as_plain_values_or_is_refused(
    protocol: int,
) -> None:
    good = dill.dumps({"a": np.ones(2), "b": [1, (2.5, jnp.ones(2))]}, protocol)
    codes = [ord(opcode.code) for opcode in pickletools.opcodes]
    draw = np.random.default_rng(protocol)
    refused = 0
    for _ in range(300):
        data = bytearray(good)
        for position in draw.integers(len(good) - 8, size=draw.integers(1, 4)):
            match draw.integers(3):
                case 0:
                    data[position] = draw.integers(256)
                case 1:
                    data[position : position + draw.integers(2)] = [draw.choice(codes)]
                case 2:
                    del data[position : position + draw.integers(1, 8)]
        try:
            assert _kinds(load_arrays(bytes(data))) <= {np.ndarray, *_KINDS}
        except UnsafePickleError:
            refused += 1
    assert 200 < refused < 300


@pytest.mark.parametrize("name", hostile.RUN_WITH_PICKLE)
def test_the_same_does_run_with_pickle(name: str, tmp_path: pathlib.Path) -> None:
    pickle.loads(hostile.cases(tmp_path)[name][0])
    assert list(tmp_path.iterdir()) == [tmp_path / "ran"]
