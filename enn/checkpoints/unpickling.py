"""Reading pickles of arrays without executing them.

A pickle is a program, and `pickle.loads` calls every function that it names. The
machine here knows numbers, strings, containers and arrays. Of functions it knows those
that pickles of arrays name, and runs its own in their place; whatever else a pickle
asks for is refused before anything is done.
"""

import dataclasses
import io
import math
import pickle
import pickletools
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import jax.numpy as jnp
import numpy as np

_MAX_OPCODES = 300_000
_MAX_NODES = 100_000
_MAX_DEPTH = 64
_MAX_AXES = 32
_MAX_UNFOLDING = 4
"""What calls make together is at most 4 times the file. So are the arrays of the tree,
each counted as often as the tree refers to it."""
_UNFOLDS = "The tree unfolds to far more than the file holds."

_LITERALS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"),
    *("FLOAT", "BINFLOAT"),
    *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    *("SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}

_DTYPES = {
    f"{kind}{size}": np.dtype(f"{kind}{size}")
    for kind, sizes in {"b": "1", "i": "1248", "u": "1248", "f": "248"}.items()
    for size in sizes
} | {"c8": np.dtype("c8"), "c16": np.dtype("c16")}


class UnsafePickleError(pickle.UnpicklingError, ValueError):
    """A pickle that holds anything but arrays and plain containers."""


@dataclasses.dataclass(frozen=True)
class _Global:
    """The names that a pickle may refer to, and the functions that replace them."""

    name: str
    call: Callable[..., Any]


@dataclasses.dataclass
class _DType:
    dtype: np.dtype


def load_arrays(
    data: bytes, allow: Mapping[str, Callable[..., Any]] | None = None
) -> Any:
    """Returns the arrays and plain containers in a pickle, by `pickle` or `dill`.

    Arrays are NumPy's, also where JAX arrays were pickled. Haiku's containers become
    dicts. Protocols 0 to 5 and the module paths of NumPy 1 and 2 are known.

    Args:
      data: the pickle, one and nothing after it.
      allow: functions for further global names, such as
        `{"some_module.SomeDict": dict}`. They stand in for what the name refers to,
        which is not imported, and are called with what the pickle holds: allow none
        that you would not call with arguments from a stranger.

    Raises:
      UnsafePickleError: a ValueError, for anything else, naming the global or
        operation refused; for a pickle that is cut off, goes on after its end, nests
        deeper than 64 levels, or unfolds to far more than its own size.
    """
    max_bytes = _MAX_UNFOLDING * len(data) + 2**16
    machine = _Machine({**_FUNCTIONS, **(allow or {})}, max_bytes)
    try:
        value = machine.run(data)
    except UnsafePickleError:
        raise
    # Invalid text in the file warns; the user may have turned warnings into errors.
    except (ArithmeticError, LookupError, TypeError, ValueError, Warning) as error:
        raise UnsafePickleError(
            f"This is not a pickle of arrays: {error!s:.99}."
        ) from error
    _check_tree(value, max_bytes)
    return value


class _Machine:
    def __init__(self, functions: Mapping[str, Callable[..., Any]], max_bytes: int):
        self._functions = functions
        self._bytes_left = max_bytes
        self._stack: list[Any] = []
        self._marked: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def run(self, data: bytes) -> Any:
        stream = io.BytesIO(data)
        for count, (opcode, arg, _) in enumerate(pickletools.genops(stream)):
            if count == _MAX_OPCODES:
                raise UnsafePickleError(f"More than {_MAX_OPCODES} operations.")
            self._step(opcode.name, arg)
        if stream.tell() != len(data):
            num_bytes = len(data) - stream.tell()
            raise UnsafePickleError(f"{num_bytes} bytes follow the pickle.")
        if len(self._stack) != 1 or self._marked:
            raise UnsafePickleError("The pickle holds more than one value.")
        return self._stack[0]

    def _step(self, opcode: str, arg: Any) -> None:
        stack = self._stack
        match opcode:
            case "PROTO" | "FRAME" | "STOP":
                pass
            case _ if opcode in _LITERALS:
                stack.append(arg)
            case _ if opcode in _CONSTANTS:
                stack.append(_CONSTANTS[opcode])
            case "MARK":
                self._marked.append(stack)
                self._stack = []
            case _ if opcode in _TUPLES:
                start = len(stack) - _TUPLES[opcode]
                if start < 0:
                    raise UnsafePickleError("A tuple of values that are not there.")
                stack[start:] = [tuple(stack[start:])]
            case "TUPLE":
                self._push_marked(tuple)
            case "LIST":
                self._push_marked(list)
            case "DICT":
                self._push_marked(lambda items: _set_items({}, items))
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_DICT":
                stack.append({})
            case "APPEND":
                value = stack.pop()
                _of_type(list, stack[-1]).append(value)
            case "APPENDS":
                items = self._pop_marked()
                _of_type(list, self._stack[-1]).extend(items)
            case "SETITEM":
                items = [stack.pop(-2), stack.pop()]
                _set_items(stack[-1], items)
            case "SETITEMS":
                items = self._pop_marked()
                _set_items(self._stack[-1], items)
            case "MEMOIZE":
                self._memo[len(self._memo)] = stack[-1]
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self._memo[arg] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(self._memo[arg])
            case "GLOBAL":
                stack.append(self._find(arg.replace(" ", ".", 1)))
            case "STACK_GLOBAL":
                name, module = _of_type(str, stack.pop()), _of_type(str, stack.pop())
                stack.append(self._find(f"{module}.{name}"))
            case "REDUCE":
                args = _of_type(tuple, stack.pop())
                stack.append(_of_type(_Global, stack.pop()).call(*args))
                self._count_bytes(stack[-1])
            case "BUILD":
                state = _of_type(tuple, stack.pop())
                _set_state(stack[-1], state)
                self._count_bytes(stack[-1])
            case _:
                raise UnsafePickleError(f"Refused operation {opcode}.")

    def _count_bytes(self, made: Any) -> None:
        """A few bytes can repeat a call, which copies what it is given each time."""
        if isinstance(made, bytes):
            self._bytes_left -= len(made)
        elif isinstance(made, np.ndarray):
            self._bytes_left -= made.nbytes
        if self._bytes_left < 0:
            raise UnsafePickleError(_UNFOLDS)

    def _find(self, name: str) -> _Global:
        if name not in self._functions:
            raise UnsafePickleError(
                f"Refused global {name!r:.99}: only arrays and plain containers load."
            )
        return _Global(name, self._functions[name])

    def _pop_marked(self) -> list[Any]:
        items, self._stack = self._stack, self._marked.pop()
        return items

    def _push_marked(self, make: Callable[[list[Any]], Any]) -> None:
        items = self._pop_marked()
        self._stack.append(make(items))


def _of_type(kind: type, value: Any) -> Any:
    if type(value) is not kind:
        got, wanted = (t.__name__.strip("_").lower() for t in (type(value), kind))
        raise UnsafePickleError(f"Refused {got} in place of {wanted}.")
    return value


def _set_items(target: Any, items: list[Any]) -> dict[str, Any]:
    """Sets alternating keys and values; keys are strings, as hashes can be abused."""
    keys = [_of_type(str, key) for key in items[::2]]
    _of_type(dict, target).update(zip(keys, items[1::2], strict=True))
    return target


def _set_state(target: Any, state: tuple[Any, ...]) -> None:
    if isinstance(target, _DType):
        # Version, byte order, subarray, names, fields, and at most four numbers more.
        if len(state) > 9 or state[2:5] != (None, None, None):
            raise UnsafePickleError("Refused dtype with fields.")
        target.dtype = target.dtype.newbyteorder(_of_type(str, state[1]))
        return
    _of_type(np.ndarray, target)
    _, shape, dtype, is_fortran, data = state
    dtype = _of_type(_DType, dtype).dtype
    num_axes = len(_of_type(tuple, shape))
    if num_axes > _MAX_AXES:
        raise UnsafePickleError(f"Refused array of {num_axes} axes.")
    # Integers may have millions of digits: they are compared before they are used.
    if not all(0 <= _of_type(int, size) < 2**63 for size in shape):
        raise UnsafePickleError("Refused array with an axis of no possible size.")
    if math.prod(shape) * dtype.itemsize != len(_of_type(bytes, data)):
        raise UnsafePickleError(
            f"Refused {len(data)} bytes as array of shape {list(shape)} and type "
            f"{dtype}."
        )
    is_fortran = _of_type(bool, is_fortran)
    target.__setstate__((1, shape, dtype, is_fortran, data))


def _check_tree(tree: Any, max_bytes: int) -> None:
    pending = [(tree, 0)]
    num_nodes = num_bytes = 0
    while pending:
        value, depth = pending.pop()
        if isinstance(value, dict | list | tuple):
            num_nodes += len(value)
            if depth == _MAX_DEPTH:
                raise UnsafePickleError(f"Nested deeper than {_MAX_DEPTH} levels.")
        elif isinstance(value, np.ndarray):
            num_bytes += value.nbytes
        elif isinstance(value, _Global | _DType):
            name = value.name if isinstance(value, _Global) else value.dtype
            raise UnsafePickleError(f"Refused {name} as a value.")
        if num_nodes > _MAX_NODES or num_bytes > max_bytes:
            raise UnsafePickleError(_UNFOLDS)
        if isinstance(value, dict | list | tuple):
            children = value.values() if isinstance(value, dict) else value
            pending += [(child, depth + 1) for child in children]


def _not_called(*args: Any) -> NoReturn:
    raise UnsafePickleError("Refused call of a type.")


def _make_dtype(code: Any, align: bool = False, copy: bool = False) -> _DType:
    if isinstance(code, _Global) and code.name == "ml_dtypes.bfloat16":
        return _DType(np.dtype(jnp.bfloat16))
    if _of_type(str, code) not in _DTYPES:
        raise UnsafePickleError(f"Refused dtype {code!r:.99}.")
    return _DType(_DTYPES[code])


def _reconstruct(kind: Any, shape: Any, code: Any) -> np.ndarray:
    if _of_type(_Global, kind).name != "numpy.ndarray":
        raise UnsafePickleError(f"Refused array of type {kind.name}.")
    return np.ndarray(0, np.int8)


def _create_array(
    function: Any, args: Any, state: Any, attributes: Any = None
) -> np.ndarray:
    if _of_type(_Global, function).call is not _reconstruct:
        raise UnsafePickleError(f"Refused array made by {function.name}.")
    array = _reconstruct(*_of_type(tuple, args))
    _set_state(array, _of_type(tuple, state))
    return array


def _from_buffer(buffer: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    array = np.ndarray(0, np.int8)
    data = bytes(buffer) if isinstance(buffer, bytearray) else buffer
    _set_state(array, (1, shape, dtype, order == "F", data))
    return array


def _make_scalar(dtype: Any, data: Any) -> np.ndarray:
    return _from_buffer(data, dtype, (), "C")


def _encode(text: Any, encoding: Any) -> bytes:
    if _of_type(str, encoding) != "latin1":
        raise UnsafePickleError(f"Refused encoding {encoding!r:.99}.")
    return _of_type(str, text).encode("latin1")


def _make_empty_dict() -> dict[str, Any]:
    return {}


def _to_dict(mapping: Any) -> dict[str, Any]:
    return _of_type(dict, mapping)


_NUMPY_CORES = ("numpy.core", "numpy._core")  # of NumPy 1 and 2
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "numpy.ndarray": _not_called,
    "numpy.dtype": _make_dtype,
    "ml_dtypes.bfloat16": _not_called,
    **{f"{core}.multiarray._reconstruct": _reconstruct for core in _NUMPY_CORES},
    **{f"{core}.multiarray.scalar": _make_scalar for core in _NUMPY_CORES},
    **{f"{core}.numeric._frombuffer": _from_buffer for core in _NUMPY_CORES},
    "_codecs.encode": _encode,
    "dill._dill._create_array": _create_array,
    "dill.dill._create_array": _create_array,
    "jax._src.array._reconstruct_array": _create_array,
    "jax._src.device_array.reconstruct_device_array": _create_array,
    "collections.OrderedDict": _make_empty_dict,
    "haiku._src.data_structures.FlatMapping": _to_dict,
    "haiku._src.data_structures.frozendict": _to_dict,
}
