"""Pickles that must be refused, and what the refusal says."""

import collections
import functools
import os
import pathlib
import pickle
import shutil
import struct
import subprocess
from typing import Any

import dill
import numpy as np

RUN_WITH_PICKLE = [
    "os.system",
    "subprocess.check_output",
    "builtins.eval",
    "builtins.exec",
    "chain of calls",
    "deep in good parameters",
    "code by dill",
]
"""Those that leave a file `ran` where they are unpickled without refusal."""


class _Call:
    """Is pickled as the call of a function."""

    def __init__(self, function: Any, *args: Any):
        self._reduced = (function, args)

    def __reduce__(self) -> Any:
        return self._reduced

    def __call__(self) -> None:
        """Lets the value of a call be called."""


def _named_call(module: str, name: str, *args: Any) -> bytes:
    """Returns a pickle that calls a function which need not exist."""
    return b"\x80\x02c" + f"{module}\n{name}\n".encode() + _inner(args) + b"R."


def _inner(value: Any) -> bytes:
    """Returns the operations that make a value."""
    return pickle.dumps(value, 2)[2:-1]


def _string(text: str) -> bytes:
    return b"\x8c" + bytes([len(text)]) + text.encode()


def _global(module: str, name: str) -> bytes:
    return b"\x80\x04" + _string(module) + _string(name) + b"\x93."


_F4 = _named_call("numpy", "dtype", "f4", False, True)[2:-1]


def _array(shape: bytes, data: bytes) -> bytes:
    """Returns a pickle of an array from the operations that make its parts."""
    head = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85C\x01btR"
    return b"\x80\x03" + head + b"(K\x01" + shape + _F4 + b"\x89" + data + b"tb."


def _laughs(leaf: bytes, levels: int) -> bytes:
    """Returns a small pickle that unfolds to 10**levels leaves."""
    data = b"\x80\x04(" + leaf + b"r\x00\x00\x00\x00"
    for level in range(levels):
        again = b"j" + struct.pack("<I", level)
        data += b"(" + again * 10 + b"lr" + struct.pack("<I", level + 1)
    return data + b"t."


def _repeated(parts: list[bytes], operations: bytes) -> bytes:
    """Returns a pickle of a list of what the operations make 1000 times.

    They find part i as number 240 + i of the memo.
    """
    memo = b"".join(b"%sq%c" % (part, 240 + i) for i, part in enumerate(parts))
    return b"\x80\x05(" + memo + operations * 1000 + b"l."


def _bytes(num: int, operation: bytes = b"B") -> bytes:
    """Returns the operations that make bytes, or text or an integer of them."""
    return operation + struct.pack("<I", num) + b"a" * num


def _array_of_axes(num_axes: int, num_bytes: int) -> bytes:
    """Returns a pickle of an array whose axes are all one integer of many bytes."""
    shape = b"(" + b"h\x00" * num_axes + b"t"
    size = _bytes(num_bytes, b"\x8b") + b"\x94"
    return b"\x80\x04(" + size + _array(shape, b"C\x00")[2:-1] + b"l."


def cases(folder: pathlib.Path) -> dict[str, tuple[bytes, str]]:
    """Returns each pickle, which may touch `folder`, and a pattern of the refusal."""
    shell, code = f"touch {folder}/ran", f"open({str(folder / 'ran')!r}, 'w').close()"
    run = _Call(os.system, shell)
    popen = _Call(subprocess.Popen, ["touch", f"{folder}/ran"])
    good = pickle.dumps({"params": {"w": 1.0}, "state": {}}, 4)
    calls = {
        "os.system": (run, "posix.system"),
        "os.popen": (_Call(os.popen, shell), "os.popen"),
        "os.execv": (_Call(os.execv, "/bin/false", ["false"]), "posix.execv"),
        "subprocess.Popen": (popen, "subprocess.Popen"),
        "subprocess.check_output": (
            _Call(subprocess.check_output, ["touch", f"{folder}/ran"]),
            "subprocess.check_output",
        ),
        "functools.partial": (
            _Call(functools.partial(subprocess.check_output, shell=True), shell),
            "functools.partial",
        ),
        "builtins.eval": (_Call(eval, code), "builtins.eval"),
        "builtins.exec": (_Call(exec, code), "builtins.exec"),
        "builtins.open": (
            _Call(open, str(folder / "ran"), "w"),
            "(_io|io).open",
        ),
        "builtins.__import__": (_Call(__import__, "this"), "builtins.__import__"),
        "builtins.bytearray": (_Call(bytearray, 2**40), "builtins.bytearray"),
        "shutil.rmtree": (_Call(shutil.rmtree, str(folder)), "shutil.rmtree"),
        "chain of calls": (
            _Call(_Call(getattr, _Call(__import__, "os"), "system"), shell),
            "builtins.getattr",
        ),
        "deep in good parameters": (
            {"params": {"net": {"w": np.ones(2), "b": [(run,)]}}, "state": {}},
            "posix.system",
        ),
        "set": ({1, 2}, "EMPTY_SET"),
        "class": (collections.OrderedDict, "collections.OrderedDict as a value"),
        "dtype": (np.dtype("f4"), "float32 as a value"),
        "array of objects": (np.array([run], object), "posix.system|dtype 'O8'"),
        "array of lists": (np.array([[1], {}], object), "dtype 'O8'"),
        "array of records": (np.zeros(2, [("a", "f4")]), "dtype 'V4'"),
        "array of strings": (np.array(["a", "b"]), "dtype 'U1'"),
        "array of dates": (np.array(["2020"], "M8[s]"), "dtype 'M8'"),
    }
    named = {
        "builtins of Python 2": ("__builtin__", "eval", code),
        "getattr": ("builtins", "getattr", "os", "system"),
        "import_module": ("importlib", "import_module", "os"),
        "runpy": ("runpy", "_run_code", code, {}),
        "pickle in a pickle": ("pickle", "loads", pickle.dumps(run)),
        "numpy.load": ("numpy", "load", str(folder)),
        "code that numpy runs": ("numpy.testing._private.utils", "runstring", code, {}),
        "code object by dill": ("dill._dill", "_create_code", 0, 0),
        "function by dill": ("dill._dill", "_create_function", None, {}),
        "type by dill": ("dill._dill", "_load_type", "CodeType"),
        "eval by dill": ("dill._dill", "_eval_repr", code),
        "import by dill": ("dill._dill", "_import_module", "os.system"),
        "getattr by dill": ("dill._dill", "_get_attr", "os", "system"),
        "class by dill": ("dill._dill", "_create_type", "type", "X"),
        "file by dill": ("dill._dill", "_create_filehandle", str(folder / "ran")),
    }
    raw = {
        "code by dill": (
            dill.dumps(_Call(eval, compile(code, "name", "eval"))),
            "dill._dill|builtins.eval",
        ),
        "lambda by dill": (dill.dumps(lambda: os.system(shell)), "dill._dill"),
        "maker of an array": (
            pickle.dumps(_Call(dill._dill._create_array, os.system, (shell,), ())),
            "posix.system",
        ),
        "other maker of an array": (
            b"\x80\x02cdill._dill\n_create_array\n(cnumpy\ndtype\n))tR.",
            "array made by numpy.dtype",
        ),
        "other kind of array": (
            b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n"
            b"(cnumpy\ndtype\nK\x00\x85U\x01btR.",
            "SHORT_BINSTRING",
        ),
        "array of another type": (
            b"\x80\x03cnumpy.core.multiarray\n_reconstruct\n"
            b"(cnumpy\ndtype\nK\x00\x85C\x01btR.",
            "array of type numpy.dtype",
        ),
        "call of a type": (_named_call("numpy", "ndarray", (2**40,)), "call of a type"),
        "other encoding": (
            _named_call("_codecs", "encode", "text", "rot13"),
            "encoding 'rot13'",
        ),
        "call of a value": (b"\x80\x04N)R.", "nonetype in place of global"),
        "dotted name": (_global("numpy", "dtype.type"), "numpy.dtype.type"),
        "the reader itself": (
            _global("enn.checkpoints.unpickling", "pickle.loads"),
            "enn.checkpoints.unpickling.pickle.loads",
        ),
        "key of a dict": (b"\x80\x04}" + _inner(run) + b"Ns.", "posix.system"),
        "dtype of objects": (_named_call("numpy", "dtype", "O8", False, True), "'O8'"),
        "dtype from a list": (_named_call("numpy", "dtype", [("a", "O")]), "list"),
        "dtype beyond its memory": (
            b"\x80\x02"
            + _F4
            + _inner((3, "<", None, ("a",), {"a": (1, 2**40)}, 4, 1, 0))
            + b"b.",
            "dtype with fields",
        ),
        "dtype of a long state": (
            b"\x80\x02" + _F4 + _inner((3, "<", None, None, None, *range(99))) + b"b.",
            "dtype with fields",
        ),
        "array larger than its bytes": (
            _array(b"J\x00\x00\x00\x40\x85", b"C\x04abcd"),
            r"4 bytes as array of shape \[1073741824\] and type float32",
        ),
        "array smaller than its bytes": (
            _array(b"K\x01\x85", b"C\x08abcdabcd"),
            r"8 bytes as array of shape \[1\]",
        ),
        "array of negative size": (
            _array(b"J\xff\xff\xff\xff\x85", b"C\x00"),
            "axis of no possible size",
        ),
        "array whose size overflows": (
            _array(b"\x8a\x08" + bytes(7) + b"\x40\x85", b"C\x00"),
            r"shape \[4611686018427387904\]",
        ),
        "array of 100 axes": (
            _array(b"(" + b"K\x01" * 100 + b"t", b"C\x04abcd"),
            "array of 100 axes",
        ),
        "array of axes of many digits": (
            _array_of_axes(30, 1_000_000),
            "axis of no possible size",
        ),
        "array of axes that multiply to many digits": (
            _array_of_axes(99_999, 100_000),
            "array of 99999 axes",
        ),
        "encoding that unfolds": (
            b"\x80\x04(c_codecs\nencode\nNN"
            + b"".join(b"q%ch%c\x86" % (i, i) for i in range(60))
            + b"\x86R.",
            "tuple in place of str",
        ),
        "encoding that nests": (
            b"\x80\x04c_codecs\nencode\nN" + b"]" * 9999 + b"a" * 9998 + b"\x86R.",
            "list in place of str",
        ),
        "copies of bytes": (
            _repeated(
                [b"c_codecs\nencode\n", _bytes(99_999, b"X"), _string("latin1")],
                b"h\xf0h\xf1h\xf2\x86R",
            ),
            "unfolds",
        ),
        "copies of a buffer": (
            _repeated(
                [
                    b"cnumpy.core.numeric\n_frombuffer\n",
                    b"\x96" + struct.pack("<Q", 99_999) + b"a" * 99_999,
                    _named_call("numpy", "dtype", "u1")[2:-1],
                    b"J" + struct.pack("<i", 99_999) + b"\x85",
                    _string("C"),
                ],
                b"h\xf0(h\xf1h\xf2h\xf3h\xf4tR",
            ),
            "unfolds",
        ),
        "copies of an array with its bytes swapped": (
            _repeated(
                [
                    b"cnumpy.core.multiarray\n_reconstruct\n",
                    b"(cnumpy\nndarray\nK\x00\x85C\x01bt",
                    _F4 + _inner((3, ">", None, None, None, -1, -1, 0)) + b"b",
                    b"J" + struct.pack("<i", 25_000) + b"\x85",
                    _bytes(100_000),
                ],
                b"h\xf0h\xf1R(K\x01h\xf3h\xf2\x89h\xf4tb",
            ),
            "unfolds",
        ),
        "array from a list": (_array(b"K\x01\x85", b"]Na"), "list in place of bytes"),
        "attributes of a function": (
            b"\x80\x04cnumpy\ndtype\nN}" + _string("__defaults__") + b"N\x85s\x86b.",
            "global in place of ndarray",
        ),
        "attributes of a dict": (
            b"\x80\x04}}" + _string("update") + b"NsN\x86b.",
            "dict in place of ndarray",
        ),
        "buffer out of band": (b"\x80\x05\x97.", "NEXT_BUFFER"),
        "persistent id": (b"\x80\x04K\x01Q.", "BINPERSID"),
        "extension registry": (b"\x80\x04\x82\x01.", "EXT1"),
        "instance": (b"\x80\x04(ios\nsystem\n.", "INST"),
        "object": (b"\x80\x04(cos\nsystem\no.", "os.system"),
        "new object": (b"\x80\x04ccollections\nOrderedDict\n)\x81.", "NEWOBJ"),
        "new object with names": (
            b"\x80\x04ccollections\nOrderedDict\n)}\x92.",
            "NEWOBJ_EX",
        ),
        "more bytes than there are": (
            b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b".",
            "expected 4611686018427387904 bytes",
        ),
        "longer string than there is": (
            b"\x80\x04\x8d" + struct.pack("<Q", 2**63) + b".",
            "not a pickle of arrays",
        ),
        "larger buffer than there is": (
            b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b".",
            "expected 1099511627776 bytes",
        ),
        "memo larger than memory": (b"\x80\x04Nr\xff\xff\xff\x7f.0", "1 bytes follow"),
        "million digits": (b"I" + b"9" * 1_000_000 + b"\n.", "not a pickle of arrays"),
        "million operations": (b"\x80\x04]" + b"0]" * 500_001 + b".", "POP"),
        "million lists": (b"\x80\x04" + b"]" * 1_000_001 + b".", "operations"),
        "deep lists": (b"\x80\x04" + b"]" * 9999 + b"a" * 9998 + b".", "64 levels"),
        "deep tuples": (b"\x80\x04)" + b"\x85" * 9999 + b".", "64 levels"),
        "deep tuple as a key": (
            b"\x80\x04})" + b"\x85" * 100_000 + b"Ns.",
            "tuple in place of str",
        ),
        "list in itself": (b"\x80\x04]\x94h\x00a.", "64 levels"),
        "list in itself many times": (
            b"\x80\x04]\x94(" + b"h\x00" * 50_000 + b"e.",
            "unfolds",
        ),
        "billion laughs": (_laughs(b"K\x01", 9), "unfolds"),
        "laughs of arrays": (_laughs(_inner(np.ones(99)), 4), "unfolds"),
        "unknown operation": (b"\x80\x04\xff.", "opcode"),
        "value that is not there": (b"\x80\x04\x94.", "not a pickle of arrays"),
        "tuple of what is not there": (b"\x80\x04N\x86.", "not there"),
        "memo that is not there": (b"\x80\x04h\x05.", "not a pickle of arrays"),
        "mark that is not there": (b"\x80\x04t.", "not a pickle of arrays"),
        "key without value": (b"\x80\x04}(" + _string("a") + b"u.", "not a pickle"),
        "nothing": (b"", "exhausted"),
        "no value": (b"\x80\x04.", "one value"),
        "two values": (b"\x80\x04NN.", "one value"),
        "cut off in the middle": (good[: len(good) // 2], "not a pickle of arrays"),
        "cut off at the end": (good[:-1], "exhausted"),
        "cut off in an array": (pickle.dumps(np.ones(100), 4)[:-50], "bytes"),
        "extra byte": (good + b"\x00", "1 bytes follow"),
        "second pickle": (good + pickle.dumps(run), "bytes follow"),
        "page of HTML": (b"<html>Not found</html>", "opcode"),
    }
    return (
        {
            name: (pickle.dumps(value, 4), message)
            for name, (value, message) in calls.items()
        }
        | {
            f"{name}, protocol {protocol}": (
                pickle.dumps(run, protocol),
                "posix.system",
            )
            for name in ["os.system"]
            for protocol in (0, 1, 2, 3, 5)
        }
        | {
            name: (_named_call(*call), rf"Refused global '{call[0]}.{call[1]}'")
            for name, call in named.items()
        }
        | raw
    )
