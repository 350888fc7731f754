# SPDX-License-Identifier: Apache-2.0
"""evergemm_c_api_v1, the library's table of C functions, through ctypes: validate, explain, facts.

The layouts are those of include/evergemm/c_api.h. Imports no torch, so that it can be read and tested without one.
Must not go here: rules or wording of errors (the library has them).
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import os
from collections.abc import Sequence

_MAX_RANK = 64
_MAX_OUTPUTS = 3

KIND_TENSOR, KIND_INT, KIND_FLOAT, KIND_BOOL, KIND_DTYPE = range(5)

# torch's ScalarType codes by the name of the dtype.
DTYPE_CODES = {
    name: code
    for code, name in enumerate(
        "uint8 int8 int16 int32 int64 float16 float32 float64 complex32 complex64 complex128 bool qint8 quint8 qint32 "
        "bfloat16 quint4x2 quint2x4 bits1x8 bits2x4 bits4x2 bits8 bits16 float8_e5m2 float8_e4m3fn float8_e5m2fnuz "
        "float8_e4m3fnuz uint16 uint32 uint64 uint1 uint2 uint3 uint4 uint5 uint6 uint7 int1 int2 int3 int4 int5 int6 "
        "int7 float8_e8m0fnu float4_e2m1fn_x2".split()
    )
}
DTYPE_NAMES = {code: name for name, code in DTYPE_CODES.items()}
DEVICE_TYPES = {"cpu": 0, "cuda": 1}


class _Tensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("sizes", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("storage_bytes", ctypes.c_int64),
        ("rank", ctypes.c_int32),
        ("dtype", ctypes.c_int32),
        ("device_type", ctypes.c_int32),
        ("device_index", ctypes.c_int32),
        ("requires_grad", ctypes.c_int32),
        ("reserved", ctypes.c_int32),
    ]


class _Argument(ctypes.Structure):
    _fields_ = [
        ("kind", ctypes.c_int32),
        ("reserved", ctypes.c_int32),
        ("integer", ctypes.c_int64),
        ("real", ctypes.c_double),
        ("tensor", _Tensor),
    ]


class _Output(ctypes.Structure):
    _fields_ = [
        ("dtype", ctypes.c_int32),
        ("device_type", ctypes.c_int32),
        ("device_index", ctypes.c_int32),
        ("rank", ctypes.c_int32),
        ("sizes", ctypes.c_int64 * _MAX_RANK),
        ("strides", ctypes.c_int64 * _MAX_RANK),
    ]


class _Text(ctypes.Structure):
    _fields_ = [("data", ctypes.c_char_p), ("capacity", ctypes.c_int64), ("length", ctypes.c_int64)]


_text_pointer = ctypes.POINTER(_Text)
_argument_pointer = ctypes.POINTER(_Argument)


class _Table(ctypes.Structure):
    _fields_ = [
        ("size", ctypes.c_uint64),
        ("version", ctypes.CFUNCTYPE(ctypes.c_char_p)),
        ("status", ctypes.CFUNCTYPE(ctypes.c_char_p)),
        ("operator_count", ctypes.CFUNCTYPE(ctypes.c_int32)),
        ("operator_schema", ctypes.CFUNCTYPE(ctypes.c_char_p, ctypes.c_int32)),
        ("operator_takes_tensors", ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_int32)),
        (
            "validate",
            ctypes.CFUNCTYPE(
                ctypes.c_int32,
                ctypes.c_char_p,
                _argument_pointer,
                ctypes.c_int32,
                ctypes.POINTER(_Output),
                ctypes.POINTER(ctypes.c_int32),
                _text_pointer,
            ),
        ),
        (
            "explain",
            ctypes.CFUNCTYPE(
                ctypes.c_int32, ctypes.c_char_p, _argument_pointer, ctypes.c_int32, ctypes.c_char_p, _text_pointer
            ),
        ),
        ("facts", ctypes.CFUNCTYPE(ctypes.c_int32, _text_pointer)),
        ("supports_fp8", ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_int64)),
        ("supports_block_fp8", ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_int64)),
        ("supports_grouped", ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_int64)),
        (
            "register_dropins",
            ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.POINTER(ctypes.c_char_p), ctypes.c_int32, _text_pointer),
        ),
    ]


@dataclasses.dataclass(frozen=True)
class TensorArgument:
    """A tensor as the validator sees it. `address` need only be right relative to other tensors of the call; strides
    None means contiguous; device is "cpu", "cuda:0" or "cuda"."""

    sizes: Sequence[int]
    dtype: str
    strides: Sequence[int] | None = None
    device: str = "cpu"
    address: int = 0
    storage_bytes: int = -1
    requires_grad: bool = False


@dataclasses.dataclass(frozen=True)
class DTypeArgument:
    """A ScalarType argument by the dtype's name, for example "bfloat16"."""

    name: str


@dataclasses.dataclass(frozen=True)
class OutputDescription:
    """A result that an operator would allocate."""

    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str


def _contiguous(sizes: Sequence[int]) -> list[int]:
    strides, step = [], 1
    for size in reversed(sizes):
        strides.insert(0, step)
        step *= max(size, 1)
    return strides


def _fill_tensor(view: _Tensor, tensor: TensorArgument | None) -> None:
    if tensor is None:
        view.rank = -1
        return
    rank = len(tensor.sizes)
    strides = _contiguous(tensor.sizes) if tensor.strides is None else tensor.strides
    device, _, index = tensor.device.partition(":")
    view.data = tensor.address
    view.sizes = (ctypes.c_int64 * rank)(*tensor.sizes)
    view.strides = (ctypes.c_int64 * rank)(*strides)
    view.storage_bytes = tensor.storage_bytes
    view.rank = rank
    view.dtype = DTYPE_CODES.get(tensor.dtype, -1)
    view.device_type = DEVICE_TYPES.get(device, 2)
    view.device_index = int(index or 0)
    view.requires_grad = tensor.requires_grad


def _fill(target: _Argument, value: TensorArgument | DTypeArgument | bool | int | float | None) -> None:
    if value is None or isinstance(value, TensorArgument):
        target.kind = KIND_TENSOR
        _fill_tensor(target.tensor, value)
    elif isinstance(value, DTypeArgument):
        target.kind, target.integer = KIND_DTYPE, DTYPE_CODES.get(value.name, -1)
    elif isinstance(value, bool):
        target.kind, target.integer = KIND_BOOL, value
    elif isinstance(value, int):
        target.kind, target.integer = KIND_INT, value
    else:
        target.kind, target.real = KIND_FLOAT, value


class Library:
    """The C interface of one loaded library file. Methods that the library answers with an error raise RuntimeError
    with its text."""

    def __init__(self, path: str | os.PathLike[str]):
        self._handle = ctypes.CDLL(os.fspath(path))
        self._table = _Table.in_dll(self._handle, "evergemm_c_api_v1")
        if self._table.size < ctypes.sizeof(_Table):
            raise ImportError(
                f"evergemm: expected a C interface of {ctypes.sizeof(_Table)} bytes in {path}; got {self._table.size}; "
                "fix: reinstall the package: library and sources differ."
            )

    def version(self) -> str:
        return self._table.version().decode()

    def status(self) -> str:
        """ "" when all operators are registered, otherwise why not."""
        return self._table.status().decode(errors="replace")

    def schemas(self) -> list[tuple[str, bool]]:
        """Each operator's schema and whether it takes tensors."""
        count = self._table.operator_count()
        return [
            (self._table.operator_schema(i).decode(), bool(self._table.operator_takes_tensors(i))) for i in range(count)
        ]

    def _ask(self, function, *arguments) -> tuple[int, str]:
        text = _Text(None, 0, 0)
        code = function(*arguments, ctypes.byref(text))
        buffer = ctypes.create_string_buffer(text.length + 1)
        text = _Text(ctypes.cast(buffer, ctypes.c_char_p), len(buffer), 0)
        code = function(*arguments, ctypes.byref(text))
        return code, buffer.value.decode(errors="replace")

    @staticmethod
    def _arguments(values: Sequence) -> ctypes.Array:
        array = (_Argument * len(values))()
        for target, value in zip(array, values, strict=True):
            _fill(target, value)
        return array

    def validate(self, operator: str, values: Sequence) -> list[OutputDescription]:
        """Would `operator` ("scaled_mm", "scaled_mm.out", ...) take these values, in the order of its schema? Returns
        the results that it would allocate; raises RuntimeError with the operator's own text where it would not.

        A value is a TensorArgument, None, a DTypeArgument, a bool, an int or a float."""
        outputs = (_Output * _MAX_OUTPUTS)()
        count = ctypes.c_int32()
        array = self._arguments(values)
        arguments = (operator.encode(), array, len(values), outputs, ctypes.byref(count))
        text = _Text(None, 0, 0)
        if self._table.validate(*arguments, ctypes.byref(text)) != 0:
            raise RuntimeError(self._ask(self._table.validate, *arguments)[1])
        return [
            OutputDescription(
                tuple(output.sizes[: output.rank]), tuple(output.strides[: output.rank]), DTYPE_NAMES[output.dtype]
            )
            for output in outputs[: count.value]
        ]

    def explain(self, operator: str, values: Sequence, architecture: str | None = None) -> dict:
        """The plan for `operator` with these values (see validate) on `architecture`: "cpu", "cpu-avx2", "sm90a", ...;
        None is this machine's processor."""
        array = self._arguments(values)
        wanted = None if architecture is None else architecture.encode()
        code, text = self._ask(self._table.explain, operator.encode(), array, len(values), wanted)
        if code != 0:
            raise RuntimeError(text)
        return json.loads(text)

    def register_dropins(self, names: Sequence[str]) -> None:
        """Registers these operators also in the namespace _C, all or none. RuntimeError says why none."""
        array = (ctypes.c_char_p * len(names))(*[name.encode() for name in names])
        buffer = ctypes.create_string_buffer(2048)  # not _ask: a second call would define them again
        text = _Text(ctypes.cast(buffer, ctypes.c_char_p), len(buffer), 0)
        if self._table.register_dropins(array, len(names), ctypes.byref(text)) != 0:
            raise RuntimeError(buffer.value.decode(errors="replace"))

    def facts(self) -> dict:
        """This machine and this binary: version, status, cpu, gpus, architectures with their rows."""
        return json.loads(self._ask(self._table.facts)[1])
