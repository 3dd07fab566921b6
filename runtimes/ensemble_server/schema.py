"""`ensemble.yaml` checked and frozen; its page is the README. All of its errors are found together, each with its line."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from serinus.bounds import BOUNDS
from serinus.errors import ConfigError
from serinus.protocol.datatypes import DATATYPES, NUMPY_DTYPES
from serinus.protocol.types import Limits

from .document import Checker, Where, load

__all__ = ["FILE_NAME", "EnsembleSpec", "InputSpec", "MemberInput", "MemberSpec", "inside", "read"]

FILE_NAME = "ensemble.yaml"
_VERSION = 1
_LIMITS = Limits()
"""Of a request, unless the server is told otherwise: a row that is larger by itself is a mistake."""
_NAME = re.compile(r"[A-Za-z0-9_-]+")
_RUNTIME = re.compile(r"[A-Za-z_][\w.]*(:[A-Za-z_]\w*)?")


@dataclass(frozen=True, slots=True)
class InputSpec:
    """One tensor of the request."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    columns: tuple[str, ...] = ()
    optional: bool = False


@dataclass(frozen=True, slots=True)
class MemberInput:
    """How one input of a member is cut from the request."""

    tensor: str
    input: str = ""
    """The member's own name; empty: its inputs in order."""
    columns: tuple[str | int, ...] = ()
    """In the order that the member wants; empty: the whole tensor."""


@dataclass(frozen=True, slots=True)
class MemberSpec:
    """One model of the ensemble."""

    name: str
    runtime: str
    file: Path
    inputs: tuple[MemberInput, ...]
    outputs: Mapping[str, str]
    """Role to output name; empty: `score` is the member's first output."""
    extra: Mapping[str, Any]
    threads: int
    """Native threads of its predict; 0: the server's."""
    where: Where
    """Its place in the document, for what only loading finds wrong."""


@dataclass(frozen=True, slots=True)
class EnsembleSpec:
    """The whole file, but for the combiner's parameters, which are the combiner's to check."""

    directory: Path
    inputs: tuple[InputSpec, ...]
    members: tuple[MemberSpec, ...]
    combiner: str
    parameters: Mapping[str, Any]


def read(directory: Path) -> tuple[EnsembleSpec, Checker]:
    """Read `ensemble.yaml`, collecting problems; call `raise_problems` once the combiner has added its own.

    Args:
        directory: the model directory, or the file itself.

    Raises:
        ConfigError: it cannot be read at all, or is no mapping.
    """
    path = directory if directory.name == FILE_NAME else directory / FILE_NAME
    if not path.is_file():
        raise ConfigError(f"{path}: no such file; an ensemble's model directory holds {FILE_NAME}")
    document, checker = load(path)
    if not isinstance(document, dict):
        raise ConfigError(f"{path}:1: a mapping with schema_version, inputs, members and combiner was expected")
    checker.keys(
        document,
        (),
        ("schema_version", "inputs", "members", "combiner"),
        ("schema_version", "inputs", "members", "combiner"),
    )
    version = checker.take(document, (), "schema_version", int, _VERSION)
    if version != _VERSION:
        checker.problem(("schema_version",), f"is {version}; this server reads version {_VERSION}")
    inputs = _inputs(checker, document)
    members = _members(checker, document, path.parent, {spec.name: spec for spec in inputs})
    combiner = checker.keys(document.get("combiner") or {}, ("combiner",), ("name", "parameters"), ("name",))
    spec = EnsembleSpec(
        path.parent,
        inputs,
        members,
        checker.take(combiner, ("combiner",), "name", str, ""),
        checker.take(combiner, ("combiner",), "parameters", dict, {}),
    )
    return spec, checker


def inside(directory: Path, relative: str) -> Path | None:
    """Resolve a path inside the directory; None where it leads out of it, by `..`, as an absolute one or over a link."""
    root = directory.resolve()
    path = (root / relative).resolve()
    return path if path.is_relative_to(root) and path != root and not Path(relative).is_absolute() else None


def _inputs(checker: Checker, document: Mapping[str, Any]) -> tuple[InputSpec, ...]:
    found: dict[str, InputSpec] = {}
    for index, entry in enumerate(checker.take(document, (), "inputs", list, [])):
        where: Where = ("inputs", index)
        values = checker.keys(
            entry, where, ("name", "datatype", "shape", "columns", "optional"), ("name", "datatype", "shape")
        )
        name = checker.take(values, where, "name", str, "")
        datatype = checker.choice(values, where, "datatype", sorted(DATATYPES), "FP32")
        shape = checker.take(values, where, "shape", list, [-1])
        if not shape or shape[0] != -1 or not all(type(size) is int and size >= -1 for size in shape):
            checker.problem((*where, "shape"), "must be sizes with the rows first: [-1] or [-1, 12]")
            shape = [-1]
        size = prod(max(1, length) for length in shape) * np.dtype(NUMPY_DTYPES[datatype]).itemsize
        if len(shape) > _LIMITS.rank:
            checker.problem((*where, "shape"), f"has {len(shape)} dimensions; at most {_LIMITS.rank}")
        elif size > _LIMITS.tensor_bytes:
            checker.problem((*where, "shape"), f"has {size} bytes a row; at most {_LIMITS.tensor_bytes}")
        columns = checker.take(values, where, "columns", list, [])
        if columns:
            if not all(isinstance(column, str) for column in columns) or len(set(columns)) != len(columns):
                checker.problem((*where, "columns"), "must be names, each once")
                columns = []
            elif len(shape) != 2 or shape[1] not in (-1, len(columns)):
                checker.problem((*where, "columns"), f"names {len(columns)} columns, the shape is {shape}")
        if name in found:
            checker.problem((*where, "name"), f"{name!r} is there twice")
        elif name:
            optional = checker.take(values, where, "optional", bool, False)
            found[name] = InputSpec(name, datatype, tuple(shape), tuple(columns), optional)
    if not found:
        checker.problem(("inputs",), "names no tensor")
    return tuple(found.values())


def _members(
    checker: Checker, document: Mapping[str, Any], directory: Path, inputs: Mapping[str, InputSpec]
) -> tuple[MemberSpec, ...]:
    found: dict[str, MemberSpec] = {}
    for index, entry in enumerate(checker.take(document, (), "members", list, [])):
        where: Where = ("members", index)
        values = checker.keys(
            entry,
            where,
            ("name", "runtime", "file", "inputs", "outputs", "threads", "extra"),
            ("name", "runtime", "file"),
        )
        name = checker.take(values, where, "name", str, "")
        runtime = checker.take(values, where, "runtime", str, "")
        relative = checker.take(values, where, "file", str, "")
        if name and not _NAME.fullmatch(name):
            checker.problem((*where, "name"), f"{name!r}: letters, digits, _ and - only")
        if runtime and not _RUNTIME.fullmatch(runtime):
            checker.problem((*where, "runtime"), f"{runtime!r} is no installed package; package:Class was expected")
        file = inside(directory, relative) if relative else None
        if relative and file is None:
            checker.problem((*where, "file"), f"{relative!r} leads out of the model directory")
        elif file is not None and not file.exists():
            checker.problem((*where, "file"), f"{relative!r}: no such file in {directory}")
        outputs = checker.take(values, where, "outputs", dict, {})
        for role, output in outputs.items():
            if not isinstance(role, str) or not isinstance(output, str):
                checker.problem((*where, "outputs", role), "must be the name of one of the member's outputs")
        threads = checker.take(values, where, "threads", int, None)
        if threads is not None and not 1 <= threads <= BOUNDS["threads"].most:
            most = BOUNDS["threads"].most
            checker.problem(
                (*where, "threads"), f"is {threads}; at least 1 and at most {most}, or leave it out for the server's"
            )
        if name in found:
            checker.problem((*where, "name"), f"{name!r} is there twice")
        elif name:
            found[name] = MemberSpec(
                name,
                runtime,
                file or directory,
                _member_inputs(checker, values, where, inputs),
                dict(outputs),
                checker.take(values, where, "extra", dict, {}),
                threads or 0,
                where,
            )
    if not found:
        checker.problem(("members",), "names no model")
    return tuple(found.values())


def _member_inputs(
    checker: Checker, values: Mapping[str, Any], member: Where, inputs: Mapping[str, InputSpec]
) -> tuple[MemberInput, ...]:
    listed = checker.take(values, member, "inputs", list, None)
    if listed is None:
        if "features" not in inputs:
            checker.problem(member, "'inputs' is missing, and the request has no tensor 'features' to take instead")
        return (MemberInput("features"),)
    found = []
    for index, entry in enumerate(listed):
        where: Where = (*member, "inputs", index)
        cut = checker.keys(entry, where, ("tensor", "input", "columns"), ("tensor",))
        tensor = checker.take(cut, where, "tensor", str, "")
        columns = checker.take(cut, where, "columns", list, [])
        source = inputs.get(tensor)
        if tensor and source is None:
            checker.problem(
                (*where, "tensor"), f"{tensor!r} is none of the inputs: {', '.join(inputs) or 'there are none'}"
            )
        elif source is not None:
            if source.optional:
                checker.problem((*where, "tensor"), f"{tensor!r} is optional, and a member cannot do without it")
            _check_columns(checker, where, columns, source)
        found.append(MemberInput(tensor, checker.take(cut, where, "input", str, ""), tuple(columns)))
    if not found:
        checker.problem((*member, "inputs"), "names no tensor")
    return tuple(found)


def _check_columns(checker: Checker, where: Where, columns: list[Any], source: InputSpec) -> None:
    for index, column in enumerate(columns):
        place = (*where, "columns", index)
        if type(column) is int:
            width = source.shape[1] if len(source.shape) == 2 else 0
            if column < 0 or (width != -1 and column >= width):
                checker.problem(place, f"{column} is no column of {source.name!r}, shape {list(source.shape)}")
        elif not isinstance(column, str):
            checker.problem(place, "must be a column's name or index")
        elif source.columns and column not in source.columns:
            checker.problem(place, f"{column!r} is no column of {source.name!r}")
