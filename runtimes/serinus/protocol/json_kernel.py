"""Inference requests decoded by the compiled kernel, `serinus_json_take`.

Theory of operation. The kernel takes the numbers, the plain strings and the id out of a body and leaves a skeleton (see
json_split.c). The first time a skeleton is seen it is parsed and checked like any request, and what it says (names, datatypes,
shapes, parameters, wanted outputs, where each tensor's values lie in the scratch memory) is kept as a `_Template`. From then on
a request with the same skeleton costs one call into C, one look-up and a copy of the values. Anything unusual or wrong gives
None, and the caller's ordinary path decides: no error is worded here.

A `_Workspace` is the memory of one call and the templates that point into it. Workspaces are handed out from a list, whose pop and
append are atomic, so threads never share one.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import numpy as np

from ..errors import InvalidInput, TooLarge
from ..native import library
from .binary_codec import binary_flag
from .datatypes import BFLOAT16, BYTES, NUMPY_DTYPES
from .json_census import MOST_VALUES
from .json_codec import decode_data, decode_parameters, is_nested, load_object
from .raw import Buffer, decode, round_to_bfloat16
from .rest_document import TensorHead, decode_id, decode_requested_outputs, read_head, read_list
from .types import NO_PARAMETERS, InferRequest, Limits, RequestedOutput, Tensor

__all__ = ["JsonKernel"]

_SCRATCH_BODY_BYTES = 64 * 1024
"""Bodies up to here share a workspace's scratch memory; larger ones get memory of their own, which their arrays keep."""

_TEXTS = 1 << 16
"""Strings that are made at a time."""

_SKELETON_BYTES = 64 * 1024
"""Room for a skeleton; a request with more than that beside its numbers takes the ordinary path."""

_TEMPLATE_BYTES = 4096
"""Longest skeleton that is remembered."""

_MAX_TEMPLATES = 256
"""Skeletons remembered per workspace; beyond it all are forgotten. Rows per request are part of a skeleton (its shape)."""

_VALUE_BYTES_PER_BODY_BYTE = 4
"""A value takes at least 2 bytes of JSON ("1,") and at most 8 of memory."""

_WIDE_FLOATS = frozenset({"FP16", BFLOAT16})
"""Read as float64 by the kernel, and rounded here."""

_Make = Callable[[bytes, int], np.ndarray | None]
"""Makes a tensor's array from the body and the offset of the first byte after its JSON; None: leave it to the ordinary path."""

_Input = tuple[str, str, tuple[int, ...], Mapping[str, Any], bool, _Make]


class _Area(ctypes.Structure):
    """`split_area` of json_split.c."""

    _fields_ = (
        ("skeleton", ctypes.c_void_p),
        ("skeleton_capacity", ctypes.c_int64),
        ("values", ctypes.c_void_p),
        ("values_capacity", ctypes.c_int64),
        ("id_offset", ctypes.c_int64),
        ("id_length", ctypes.c_int64),
        ("tensors", ctypes.c_int64),
        ("values_used", ctypes.c_int64),
    )


_ID_OFFSET, _ID_LENGTH, _TENSORS = 4, 5, 6
"""Places of these fields among the 64-bit words of `_Area`."""


class _Template:
    """What all requests of one skeleton have in common.

    Attributes:
        inputs: per input its name, datatype, shape, parameters, whether its JSON is nested, and its maker.
        binary_bytes: bytes that must follow the JSON.
        can_be_kept: no value of one request is part of it.
    """

    __slots__ = ("binary", "binary_bytes", "can_be_kept", "inputs", "outputs", "parameters")

    def __init__(
        self,
        inputs: list[_Input],
        parameters: Mapping[str, Any],
        outputs: list[RequestedOutput] | None,
        binary: bool,
        binary_bytes: int,
        can_be_kept: bool,
    ) -> None:
        self.inputs = inputs
        self.parameters = parameters
        self.outputs = outputs
        self.binary = binary
        self.binary_bytes = binary_bytes
        self.can_be_kept = can_be_kept


class _Workspace:
    """Scratch memory of one call at a time."""

    __slots__ = ("area", "is_scratch", "reference", "skeleton", "templates", "values", "words")

    def __init__(self, body_bytes: int, *, is_scratch: bool) -> None:
        self.is_scratch = is_scratch
        """The memory is used again, so arrays must be copied out of it."""
        skeleton = np.empty(_SKELETON_BYTES, np.uint8)
        self.values = np.empty((body_bytes * _VALUE_BYTES_PER_BODY_BYTE + 64) // 8, np.float64)
        """float64 so that it is aligned to 8; only its bytes count."""
        self.area = _Area(
            skeleton.ctypes.data, _SKELETON_BYTES, self.values.ctypes.data, self.values.nbytes, 0, -1, 0, 0
        )
        self.reference = ctypes.byref(self.area)
        self.skeleton = skeleton.data
        self.words = memoryview(self.area).cast("B").cast("q")
        self.templates: dict[bytes, _Template] = {}


class JsonKernel:
    """The kernel with its workspaces; safe to share between threads."""

    def __init__(self, split: Any, split_long: Any, limits: Limits) -> None:
        self._split = split
        self._split_long = split_long
        """The same, without the interpreter's lock: for bodies whose milliseconds others should not wait for."""
        self._limits = limits
        self._free: list[_Workspace] = []

    @classmethod
    def open(cls, limits: Limits) -> JsonKernel | None:
        """Return the kernel; None where the library is not built."""
        native = library()
        if native is None:
            return None
        split, split_long = native.quick.serinus_json_take, native.long.serinus_json_take
        for function in (split, split_long):
            function.argtypes = (ctypes.c_char_p, ctypes.c_int32, ctypes.POINTER(_Area))
            function.restype = ctypes.c_int32
        return cls(split, split_long, limits)

    def decode_request(
        self,
        body: Buffer,
        json_length: int | None,
        model_name: str,
        model_version: str,
        headers: Mapping[str, str],
    ) -> InferRequest | None:
        """Decode a request, as `RestCodec.decode_request`; None where that has to do it the ordinary way."""
        if type(body) is not bytes:
            body = bytes(body)
        length = len(body) if json_length is None else json_length
        if length > len(body):
            return None
        if length > _SCRATCH_BODY_BYTES:
            workspace = _Workspace(length, is_scratch=False)
        else:
            try:
                workspace = self._free.pop()
            except IndexError:
                workspace = _Workspace(_SCRATCH_BODY_BYTES, is_scratch=True)
        try:
            return self._decode(workspace, body, length, model_name, model_version, headers)
        except (InvalidInput, TooLarge):
            return None
        finally:
            if workspace.is_scratch:
                self._free.append(workspace)

    def _decode(
        self,
        workspace: _Workspace,
        body: bytes,
        length: int,
        model_name: str,
        model_version: str,
        headers: Mapping[str, str],
    ) -> InferRequest | None:
        split = self._split if workspace.is_scratch else self._split_long
        used = split(body, length, workspace.reference)
        if used < 0:
            return None
        skeleton = workspace.skeleton[:used].tobytes()
        template = workspace.templates.get(skeleton)
        if template is None:
            template = self._learn(workspace, skeleton)
            if template is None:
                return None
        if template.binary_bytes != len(body) - length:
            return None
        tensors = []
        for name, datatype, shape, parameters, nested, make in template.inputs:
            array = make(body, length)
            if array is None:
                return None
            own = dict(parameters) if parameters else NO_PARAMETERS
            tensors.append(Tensor(name, datatype, shape, array, own, nested))
        words = workspace.words
        id_length = words[_ID_LENGTH]
        request_id = None
        if id_length >= 0:
            start = words[_ID_OFFSET]
            try:
                request_id = body[start : start + id_length].decode()
            except UnicodeDecodeError:
                return None
        parameters = template.parameters
        return InferRequest(
            model_name,
            tensors,
            model_version,
            request_id,
            dict(parameters) if parameters else NO_PARAMETERS,
            template.outputs,
            headers,
            None,
            0,
            template.binary,
        )

    def _learn(self, workspace: _Workspace, skeleton: bytes) -> _Template | None:
        """Parse and check a skeleton that is new."""
        try:
            template = self._parse(workspace, skeleton)
        except (InvalidInput, TooLarge):
            return None
        if template is not None and workspace.is_scratch and template.can_be_kept and len(skeleton) <= _TEMPLATE_BYTES:
            if len(workspace.templates) >= _MAX_TEMPLATES:
                workspace.templates.clear()
            workspace.templates[skeleton] = template
        return template

    def _parse(self, workspace: _Workspace, skeleton: bytes) -> _Template | None:
        limits = self._limits
        document = load_object(skeleton, "the request body", limits)
        decode_id(document.get("id"))
        inputs: list[_Input] = []
        names: set[str] = set()
        taken = value_offset = binary_bytes = 0
        can_be_kept = True
        for index, entry in enumerate(read_list(document.get("inputs"), "input", limits)):
            head = read_head(entry, index, "input", names, limits)
            nested = False
            if head.size is not None:
                make = _raw_maker(head, binary_bytes, head.size, limits)
                binary_bytes += head.size
            elif type(entry["data"]) is dict:
                nesting = entry["data"][""]
                if not self._fits(head, nesting):
                    return None
                nested = len(nesting) > 1
                maker = _text_maker if head.datatype == BYTES else _number_maker
                make, value_offset = maker(workspace, head, value_offset)
                taken += 1
            else:
                array = decode_data(head.what, head.datatype, head.shape, entry["data"], limits)
                make, can_be_kept, nested = _ready_maker(array), False, is_nested(entry["data"])
            inputs.append((head.name, head.datatype, head.shape, head.parameters, nested, make))
        if taken != workspace.words[_TENSORS]:
            return None
        parameters = decode_parameters(document.get("parameters"), "request", limits)
        binary = binary_flag(parameters, "binary_data_output", "request") is True
        outputs = decode_requested_outputs(document.get("outputs"), limits)
        return _Template(inputs, parameters, outputs, binary, binary_bytes, can_be_kept)

    def _fits(self, head: TensorHead, nesting: list[int]) -> bool:
        """Whether numbers nested so fill the shape, within the limits."""
        limits = self._limits
        count = prod(head.shape)
        if head.datatype == BYTES and count > MOST_VALUES:
            return False
        if nesting != [count] and nesting != list(head.shape):
            return False
        if 3 + len(nesting) > limits.json_depth:
            return False
        return count * NUMPY_DTYPES[head.datatype].itemsize <= limits.tensor_bytes


def _number_maker(workspace: _Workspace, head: TensorHead, offset: int) -> tuple[_Make, int]:
    """Make arrays from the numbers at `offset` of the scratch memory; also returns the next tensor's offset."""
    make: _Make
    datatype = head.datatype
    is_wide = datatype in _WIDE_FLOATS
    dtype = np.dtype(np.float64) if is_wide else NUMPY_DTYPES[datatype]
    end = offset + prod(head.shape) * dtype.itemsize
    view = workspace.values.view(np.uint8)[offset:end].view(dtype).reshape(head.shape)
    if is_wide:

        def make(_body: bytes, _json_length: int, /) -> np.ndarray | None:
            with np.errstate(over="ignore"):
                array = round_to_bfloat16(view) if datatype == BFLOAT16 else view.astype(np.float16)
            return None if np.isinf(array).any() else array  # NaN was null; an infinity, a number beyond the range

    elif workspace.is_scratch:

        def make(_body: bytes, _json_length: int, /) -> np.ndarray | None:
            return view.copy()

    else:
        make = _ready_maker(view)
    return make, (end + 7) & ~7


def _text_maker(workspace: _Workspace, head: TensorHead, offset: int) -> tuple[_Make, int]:
    """Make arrays from the strings whose places in the body are at `offset` of the scratch memory, as `_number_maker`."""
    make: _Make
    shape = head.shape
    count = prod(shape)
    end = offset + count * 8
    spans = workspace.values.view(np.uint8)[offset:end].view(np.uint32)
    if count == 1:
        words = spans.data

        def make(body: bytes, _json_length: int, /) -> np.ndarray | None:
            start = words[0]
            array = np.empty(shape, dtype=object)
            array.fill(body[start : start + words[1]])
            return array

    else:

        def make(body: bytes, _json_length: int, /) -> np.ndarray | None:
            array = np.empty(count, dtype=object)
            for first in range(
                0, count, _TEXTS
            ):  # by parts: Python's numbers of all places at once would take more than the texts
                part = spans[2 * first : 2 * (first + _TEXTS)]
                places = zip(part[::2].tolist(), part[1::2].tolist(), strict=True)
                array[first : first + _TEXTS] = [body[start : start + size] for start, size in places]
            return array.reshape(shape)

    return make, end


def _raw_maker(head: TensorHead, offset: int, size: int, limits: Limits) -> _Make:
    """Make arrays from the raw bytes at `offset` behind the JSON."""
    what, datatype, shape = head.what, head.datatype, head.shape
    if datatype != BYTES and datatype != BFLOAT16 and datatype != "BOOL":
        dtype = NUMPY_DTYPES[datatype]
        count = prod(shape)
        if size == count * dtype.itemsize <= limits.tensor_bytes:

            def quick(body: bytes, json_length: int, /) -> np.ndarray | None:
                array = np.ndarray(shape, dtype, body, json_length + offset)
                return array if array.flags.aligned else array.copy()

            return quick

    def make(body: bytes, json_length: int, /) -> np.ndarray | None:
        start = json_length + offset
        return decode(what, datatype, shape, memoryview(body)[start : start + size], limits)

    return make


def _ready_maker(array: np.ndarray) -> _Make:
    def make(_body: bytes, _json_length: int, /) -> np.ndarray | None:
        return array

    return make
