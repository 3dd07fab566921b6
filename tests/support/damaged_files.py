"""Damaged model files, and what becomes of a process that loads them: each mutation is loaded, and predicts, in a child process.

`python tests/support/damaged_files.py onnx --count 2000 --seed 1` prints a row of counts, and the seed of every mutation that ended its
process; `--only SEED` makes that one again in a folder. A mutation is made of its seed alone. One framework a run, and one or more of its
formats: the parent imports it and never computes with it, so that a fork is a fresh process that has it imported.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib
import io
import os
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from absent_packages import BESIDE_SKOPS, BESIDE_TENSORFLOW, without

__all__ = ["FORMATS", "Outcome", "mutate", "try_all"]

_TIMEOUT_S = 60
"""Longest time for one mutation; a good file takes under a second."""
_MEMORY_BYTES = 6 << 30
"""Most memory that a child may have: a count of gigabytes ends there as in a container."""
_COUNTS = (0x7FFFFFFF, 0xFFFFFFFF, 0x40000000, 0x80000000, 0, 1, (1 << 63) - 1)


@dataclass(frozen=True)
class Outcome:
    """What one mutation led to."""

    seed: int
    kind: str
    """served, refused (a ConfigError), error (another exception), crash, or slow."""
    said: str
    """The error's text, or the signal."""
    how: str
    """Of the mutation."""


# Good files


def _onnx(folder: Path) -> None:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    draw = np.random.default_rng(0)
    held = {
        "w": draw.normal(size=(4, 3, 3, 3)).astype(np.float32),
        "scale": np.ones(4, np.float32),
        "shift": np.zeros(4, np.float32),
        "mean": np.zeros(4, np.float32),
        "var": np.ones(4, np.float32),
        "shape": np.array([0, -1], np.int64),
        "dense": draw.normal(size=(64, 5)).astype(np.float32),
        "bias": draw.normal(size=5).astype(np.float32),
        "axes": np.array([1], np.int64),
        "index": np.array([0, 2, 1, 4], np.int64),
        "starts": np.array([0], np.int64),
        "ends": np.array([3], np.int64),
        "table": draw.normal(size=(7, 4)).astype(np.float32),
        "most": np.array([6], np.int64),
    }
    make = helper.make_node
    nodes = [
        make("Conv", ["x", "w"], ["c"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        make("BatchNormalization", ["c", "scale", "shift", "mean", "var"], ["n"]),
        make("Relu", ["n"], ["r"]),
        make("MaxPool", ["r"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        make("Reshape", ["p", "shape"], ["f"]),
        make("Gemm", ["f", "dense", "bias"], ["g"], alpha=1.0, transB=0),
        make("Gather", ["g", "index"], ["a"], axis=1),
        make("Slice", ["a", "starts", "ends", "axes"], ["s"]),
        make("Concat", ["s", "a"], ["k"], axis=1),
        make("Softmax", ["k"], ["y"], axis=1),
        make("ArgMax", ["g"], ["i"], axis=1, keepdims=0),
        make("Gather", ["table", "i"], ["z"], axis=0),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 7]),
            helper.make_tensor_value_info("z", TensorProto.FLOAT, ["n", 4]),
        ],
        [numpy_helper.from_array(array, name) for name, array in held.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(folder / "model.onnx"))


def _network() -> Any:
    import torch

    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3, padding=1),
        torch.nn.BatchNorm2d(4),
        torch.nn.ReLU(),
        torch.nn.MaxPool2d(2),
        torch.nn.Flatten(),
        torch.nn.Linear(64, 5),
        torch.nn.Softmax(1),
    ).eval()


def _declare(folder: Path, package: str) -> None:
    (folder / "model-settings.json").write_text(
        f'{{"implementation": "{package}", "inputs": [{{"name": "x", "datatype": "FP32", "shape": [-1, 3, 8, 8]}}]}}'
    )


def _script(folder: Path) -> None:
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(_network()).save(str(folder / "model.pt"))
    _declare(folder, "torch_server")


def _program(folder: Path) -> None:
    import torch

    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(_network(), (torch.zeros(2, 3, 8, 8),), dynamic_shapes=({0: batch},))
    torch.export.save(program, str(folder / "model.pt2"))


def _saved_model(folder: Path) -> None:
    import tensorflow as tf

    class Module(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            draw = np.random.default_rng(0)
            self.w = tf.Variable(draw.normal(size=(3, 3, 3, 4)).astype(np.float32))
            self.dense = tf.Variable(draw.normal(size=(64, 5)).astype(np.float32))
            self.table = tf.Variable(draw.normal(size=(7, 4)).astype(np.float32))

        @tf.function(input_signature=[tf.TensorSpec((None, 8, 8, 3), tf.float32, name="x")])
        def serve(self, x: Any) -> Any:
            made = tf.nn.max_pool2d(tf.nn.relu(tf.nn.conv2d(x, self.w, 1, "SAME")), 2, 2, "VALID")
            dense = tf.reshape(made, (-1, 64)) @ self.dense
            return {"y": tf.nn.softmax(dense), "z": tf.gather(self.table, tf.argmax(dense, 1))}

    module = Module()
    tf.saved_model.save(module, str(folder), signatures=module.serve)


def _sklearn_rows() -> tuple[np.ndarray, np.ndarray]:
    data = np.random.default_rng(0).normal(size=(80, 3))
    return data, (data[:, 0] > 0).astype(int) + (data[:, 1] > 0)


def _skops(folder: Path) -> None:
    import skops.io
    from sklearn.ensemble import GradientBoostingClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    made = make_pipeline(StandardScaler(), GradientBoostingClassifier(n_estimators=2, max_depth=2))
    skops.io.dump(made.fit(*_sklearn_rows()), folder / "model.skops")


def _skops_other(folder: Path) -> None:
    """A model that scikit-learn itself serves, by LIBSVM."""
    import skops.io
    from sklearn.svm import SVC

    skops.io.dump(SVC().fit(*_sklearn_rows()), folder / "model.skops")


def _catboost(folder: Path, form: str) -> None:
    import catboost

    settings = {"iterations": 3, "depth": 3, "loss_function": "MultiClass", "verbose": False}
    made = catboost.CatBoost({**settings, "allow_writing_files": False, "thread_count": 1}).fit(*_sklearn_rows())
    made.save_model(str(folder / f"model.{form}"), format=form)


@dataclass(frozen=True)
class _Format:
    make: Callable[[Path], None]
    package: str
    framework: str
    files: tuple[str, ...]
    """Of the folder, to damage."""
    zipped: bool = False
    is_tried: bool = False
    """Loaded as `serinus serve` does, in a process of its own first: the framework ends over some files, and only that process with it."""
    message: str = ""
    """Class of the first file's protocol buffer."""
    absent: tuple[str, ...] = ()
    """Packages that the framework imports where they are, and no image of ours has: these processes do not find them."""
    imports: tuple[str, ...] = ()
    """Modules that loading imports late and that take seconds: this process has them before its first fork, which would import them for itself."""


_OTHER_FORMATS = (
    b"tree\nversion=v4\n",
    b"{L\x00\x00\x00\x07learner{}",
    b"\x80\x04\x95.",
    b"PK\x05\x06" + bytes(18),
    b"\x08\x08:\x00",
    b"\x89HDF\r\n\x1a\n",
)

FORMATS: dict[str, _Format] = {
    "onnx": _Format(_onnx, "onnx_server", "onnxruntime", ("model.onnx",), message="onnx:ModelProto"),
    "skops": _Format(
        _skops, "sklearn_server", "sklearn", ("model.skops",), zipped=True, absent=BESIDE_SKOPS, imports=("skops.io",)
    ),
    "skops_svc": _Format(
        _skops_other,
        "sklearn_server",
        "sklearn",
        ("model.skops",),
        zipped=True,
        absent=BESIDE_SKOPS,
        imports=("skops.io",),
    ),
    "cbm": _Format(
        lambda folder: _catboost(folder, "cbm"), "catboost_server", "catboost", ("model.cbm",), is_tried=True
    ),
    "cbm_json": _Format(
        lambda folder: _catboost(folder, "json"), "catboost_server", "catboost", ("model.json",), is_tried=True
    ),
    "torchscript": _Format(
        _script, "torch_server", "torch", ("model.pt",), zipped=True, imports=("torch_server.module",)
    ),
    "pt2": _Format(
        _program,
        "torch_server",
        "torch",
        ("model.pt2",),
        zipped=True,
        imports=("torch_server.module", "torch._export.serde.serialize"),
    ),
    "saved_model": _Format(
        _saved_model,
        "tensorflow_server",
        "tensorflow",
        ("saved_model.pb", "variables/variables.index", "variables/variables.data-00000-of-00001"),
        message="tensorflow.core.protobuf.saved_model_pb2:SavedModel",
        absent=BESIDE_TENSORFLOW,
    ),
}


# Damage


def _flip(body: bytearray, draw: random.Random) -> str:
    count = draw.choice([1, 1, 2, 8])
    for _ in range(count):
        body[draw.randrange(len(body))] ^= 1 << draw.randrange(8)
    return f"{count} bits flipped"


def _overwrite(body: bytearray, draw: random.Random) -> str:
    at, size = draw.randrange(len(body)), draw.choice([1, 4, 16])
    body[at : at + size] = draw.randbytes(len(body[at : at + size]))
    return f"{size} bytes at {at} overwritten"


def _truncate(body: bytearray, draw: random.Random) -> str:
    size = draw.randrange(len(body))
    del body[size:]
    return f"cut to {size} bytes"


def _count(body: bytearray, draw: random.Random) -> str:
    """A number of gigabytes: in 4 or 8 bytes of either order, or as the varint of a protocol buffer."""
    value, at = draw.choice(_COUNTS), draw.randrange(len(body))
    form = draw.choice(["<I", ">I", "<Q", ">Q", "varint"])
    if form == "varint":
        encoded = bytearray()
        rest = value
        while rest >= 0x80:
            encoded.append(rest & 0x7F | 0x80)
            rest >>= 7
        encoded.append(rest)
        body[at : at + draw.choice([1, len(encoded)])] = encoded
    else:
        encoded = bytearray(struct.pack(form, value & (0xFFFFFFFF if form[1] == "I" else (1 << 64) - 1)))
        body[at : at + len(encoded)] = encoded
    return f"the number {value:#x} as {form} at {at}"


def _splice(body: bytearray, draw: random.Random) -> str:
    start, size, to = draw.randrange(len(body)), draw.randrange(1, 64), draw.randrange(len(body))
    if draw.random() < 0.5:
        body[to:to] = body[start : start + size]
        return f"{size} bytes of {start} repeated at {to}"
    del body[start : start + size]
    return f"{size} bytes left out at {start}"


def _number(body: bytearray, draw: random.Random) -> str:
    """Another small number: of a text's digits, or a byte."""
    digits = [at for at, byte in enumerate(body) if 0x30 <= byte <= 0x39]
    if digits and draw.random() < 0.5:
        at = draw.choice(digits)
        body[at : at + 1] = str(draw.choice([-1, 0, 9, 99999999, 2**31, 2**63])).encode()
    else:
        at = draw.randrange(len(body))
        body[at] = draw.choice([0, 1, 2, 127, 128, 255, (body[at] + 1) & 255, (body[at] - 1) & 255])
    return f"a number at {at}"


_MUTATORS = (_flip, _overwrite, _truncate, _count, _count, _splice, _number, _number)


def mutate(folder: Path, named: str, seed: int) -> str:
    """Damage one file of a model; says how."""
    draw, form = random.Random(seed), FORMATS[named]
    path = folder / draw.choices(form.files, [4] + [1] * (len(form.files) - 1))[0]
    whole = draw.random()
    if whole < 0.02:
        path.write_bytes(b"")
        return f"{path.name}: empty"
    if whole < 0.05:
        path.write_bytes(draw.choice(_OTHER_FORMATS))
        return f"{path.name}: another format"
    if form.message and path.name == form.files[0] and whole < 0.75:  # whole, and with another meaning
        return f"{path.name}: {_mutate_message(path, form.message, draw)}"
    if form.zipped and whole < 0.75:  # inside, so that no checksum tells
        return f"{path.name}: {_mutate_entry(path, draw)}"
    body = bytearray(path.read_bytes())
    how = draw.choice(_MUTATORS)(body, draw)
    path.write_bytes(body)
    return f"{path.name}: {how}"


def _mutate_entry(path: Path, draw: random.Random) -> str:
    with zipfile.ZipFile(path) as archive:
        held = {name: archive.read(name) for name in archive.namelist()}
    name = draw.choice([name for name, body in held.items() if body])
    body = bytearray(held[name])
    how = draw.choice(_MUTATORS)(body, draw)
    held[name] = bytes(body)
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for entry, content in held.items():
            archive.writestr(entry, content)
    path.write_bytes(made.getvalue())
    return f"{name}: {how}"


def _mutate_message(path: Path, named: str, draw: random.Random) -> str:
    """Change one field of a protocol buffer, so that it is one all the same."""
    module, _, name = named.partition(":")
    message = getattr(importlib.import_module(module), name)()
    message.ParseFromString(path.read_bytes())
    owner, field = draw.choice(list(_all_fields(message)))
    how = f"{field.full_name}: {_change_field(owner, field, draw)}"
    path.write_bytes(message.SerializeToString())
    return how


def _all_fields(message: Any) -> Iterator[tuple[Any, Any]]:
    for field, value in message.ListFields():
        yield message, field
        if field.message_type is None or field.message_type.GetOptions().map_entry:
            if field.message_type is not None and field.message_type.fields_by_name["value"].message_type is not None:
                for key in value:
                    yield from _all_fields(value[key])
        elif _is_repeated(field):
            for each in value:
                yield from _all_fields(each)
        else:
            yield from _all_fields(value)


def _is_repeated(field: Any) -> bool:
    return field.is_repeated if hasattr(field, "is_repeated") else field.label == field.LABEL_REPEATED


def _change_field(owner: Any, field: Any, draw: random.Random) -> str:
    value = getattr(owner, field.name)
    if field.message_type is not None:
        if not _is_repeated(field) or draw.random() < 0.3:
            owner.ClearField(field.name)
            return "left out"
        if field.message_type.GetOptions().map_entry:
            key = draw.choice(sorted(value))
            del value[key]
            return f"entry {key!r} left out"
        at = draw.randrange(len(value))
        if draw.random() < 0.5:
            del value[at]
            return f"item {at} left out"
        value.append(value[at])
        return f"item {at} repeated"
    if _is_repeated(field):
        if not len(value) or draw.random() < 0.2:
            owner.ClearField(field.name)
            return "left out"
        at = draw.randrange(len(value))
        if draw.random() < 0.3:
            value.append(value[at])
            return f"item {at} repeated"
        if draw.random() < 0.3:
            del value[at]
            return f"item {at} left out"
        value[at] = made = _other(value[at], field, draw)
        return f"item {at} is {made!r}"[:120]
    made = _other(value, field, draw)
    setattr(owner, field.name, made)
    return f"is {made!r}"[:120]


def _other(value: Any, field: Any, draw: random.Random) -> Any:
    """Another value of a field's type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        if field.enum_type is not None:
            return draw.choice([one.number for one in field.enum_type.values])
        bits = 32 if field.cpp_type in (field.CPPTYPE_INT32, field.CPPTYPE_UINT32) else 64
        signed = field.cpp_type in (field.CPPTYPE_INT32, field.CPPTYPE_INT64)
        least, most = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
        tried = draw.choice([0, 1, -1, value + 1, value - 1, 7, 1 << 20, 1 << 31, 1 << 33, least, most])
        return max(least, min(most, tried))
    if isinstance(value, float):
        return draw.choice([0.0, -1.0, float("nan"), float("inf"), 1e30])
    if isinstance(value, bytes):
        body = bytearray(value or b"\0")
        draw.choice(_MUTATORS)(body, draw)
        return bytes(body)
    return draw.choice(["", value + "x", value[:-1], "x" * 300, "Identity", "x", "y", "Reshape", "serving_default"])


# What becomes of it


def _load(folder: Path, package: str, *, is_tried: bool) -> None:
    """Load the model as a server does, and predict what it is warmed up with."""
    from serinus.dataplane.execution.warmup import sample_inputs
    from serinus.errors import ConfigError
    from serinus.hosts import build_model
    from serinus.loading import settings_from_directory
    from serinus.model import Call

    (settings,) = settings_from_directory(folder, implementation=package)
    model = build_model(dataclasses.replace(settings, trial=is_tried))
    model.load()
    inputs = sample_inputs(model)
    if inputs is None:
        raise ConfigError("declares no inputs")
    model.predict(inputs, Call())
    model.predict({name: np.repeat(array, 3, axis=0) for name, array in inputs.items()}, Call())


def _child(folder: Path, package: str, said: int, *, is_tried: bool) -> int:
    from serinus.errors import ConfigError

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    signal.alarm(_TIMEOUT_S)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    warnings.simplefilter("ignore")
    try:
        _load(folder, package, is_tried=is_tried)
    except ConfigError as error:
        os.write(said, str(error).encode()[:2000])
        return 3
    except BaseException as error:  # counted
        os.write(said, f"{type(error).__name__}: {error}".encode(errors="replace")[:2000])
        return 4
    return 0


def _imported_by(folder: Path, package: str) -> list[str]:
    """Modules that a child still imports to load the good model: the parent imports them once, or each child would anew."""
    reader, writer = os.pipe()
    before = set(sys.modules)
    child = os.fork()
    if child == 0:
        os.close(reader)
        status = 1
        try:
            with os.fdopen(os.dup(writer), "w") as told:
                status = _child(folder, package, writer, is_tried=False)
                told.write("\n".join(name for name in list(sys.modules) if name not in before))
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader) as told:
        names = told.read().split("\n")
    assert os.waitpid(child, 0)[1] == 0, f"the good model does not load: {names}"
    return [name for name in names if name.isidentifier() or all(part.isidentifier() for part in name.split("."))]


def try_all(named: str, seeds: Iterator[int] | range, *, folder: Path) -> Iterator[Outcome]:
    """Load each mutation in a process of its own.

    Args:
        named: of `FORMATS`.
        seeds: of the mutations.
        folder: empty, to work in.
    """
    form = FORMATS[named]
    os.environ["SERINUS_CACHE_DIR"] = str(folder / "cache")
    sys.path.insert(0, without(folder, *form.absent)["PYTHONPATH"])
    for name in (form.framework, f"{form.package}.model", *form.imports):
        __import__(name)
    good = folder / "good"
    good.mkdir()
    maker = os.fork()
    if maker == 0:  # so that this process never computes
        status = 1
        try:
            form.make(good)
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(maker, 0)[1] == 0, f"no good {named} file could be made"
    for name in _imported_by(good, form.package):
        with contextlib.suppress(ImportError):
            __import__(name)
    for seed in seeds:
        place = folder / "damaged"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(good, place)
        how = mutate(place, named, seed) if seed >= 0 else "not at all"
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            status = 99
            try:
                status = _child(place, form.package, writer, is_tried=form.is_tried)
            finally:
                os._exit(status)
        os.close(writer)
        with os.fdopen(reader, "rb") as told:
            said = told.read().decode(errors="replace")
        status = os.waitpid(child, 0)[1]
        if os.WIFSIGNALED(status):
            number = os.WTERMSIG(status)
            kind = "slow" if number == signal.SIGALRM else "crash"
            said = signal.Signals(number).name
        else:
            kind = {0: "served", 3: "refused", 4: "error"}.get(os.WEXITSTATUS(status), "crash")
        yield Outcome(seed, kind, said, how)


def _until_stopped(outcomes: Iterator[Outcome]) -> Iterator[Outcome]:
    """Give what there is until somebody stops this process: the counts so far are told."""
    try:
        yield from outcomes
    except KeyboardInterrupt:
        return


def main() -> None:
    """Print the counts of a run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("formats", nargs="+", choices=FORMATS, help="of one framework")
    parser.add_argument("--count", type=int, default=500, help="of mutations of each format")
    parser.add_argument("--seed", type=int, default=0, help="of the first mutation")
    parser.add_argument("--only", type=int, help="make this one mutation and keep it")
    parser.add_argument("--errors", action="store_true", help="print what is no refusal, too")
    asked = parser.parse_args()
    if len({FORMATS[named].framework for named in asked.formats}) > 1:
        parser.error("formats of one framework a run: this process imports it, and has no other")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    for named in asked.formats:
        _print_counts(named, asked)


def _print_counts(named: str, asked: argparse.Namespace) -> None:
    seeds = range(asked.seed, asked.seed + asked.count) if asked.only is None else range(asked.only, asked.only + 1)
    counts: Counter[str] = Counter()
    folder = Path(tempfile.mkdtemp())
    started = time.monotonic()
    outcomes = try_all(named, seeds, folder=folder)
    for outcome in _until_stopped(outcomes):
        counts[outcome.kind] += 1
        if outcome.kind in ("crash", "slow") or (asked.errors and outcome.kind == "error") or asked.only is not None:
            print(f"{named}, seed {outcome.seed}: {outcome.kind}: {outcome.said[:300]!r} ({outcome.how})", flush=True)
    if asked.only is None:
        shutil.rmtree(folder)
    else:
        print(f"kept in {folder}")
    row = ", ".join(f"{counts[kind]} {kind}" for kind in ("served", "refused", "error", "crash", "slow"))
    last = seeds.start + sum(counts.values()) - 1
    print(f"{named}, seeds {seeds.start} to {last}: {row} ({time.monotonic() - started:.0f} s)", flush=True)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2] / "runtimes"))
    main()
