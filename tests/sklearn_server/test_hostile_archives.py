"""A `.skops` file that means harm: it costs little more than its size, and is refused in words."""

from __future__ import annotations

import io
import json
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from representative import every
from serinus.errors import ConfigError
from sklearn_server import skops_file


def node(loader: str, **more: Any) -> dict[str, Any]:
    return {"__module__": "builtins", "__class__": "list", "__loader__": loader, **more}


def array_of(name: str) -> dict[str, Any]:
    return {**node("NdArrayNode"), "__module__": "numpy", "__class__": "ndarray", "type": "numpy", "file": name}


def objects_of(shape: list[int], count: int) -> dict[str, Any]:
    items = [node("JsonNode", content="1") for _ in range(count)]
    sizes = node("TupleNode", content=[node("JsonNode", content=str(size)) for size in shape])
    return {**node("NdArrayNode"), "__class__": "ndarray", "type": "json", "content": items, "shape": sizes}


def zeros(count: int) -> bytes:
    opened = io.BytesIO()
    np.save(opened, np.zeros(count))
    return opened.getvalue()


def claims(shape: str) -> bytes:
    """An `.npy` file that says it has so many numbers, and has none."""
    head = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head


def write(path: Path, schema: Any, **entries: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("schema.json", schema if isinstance(schema, bytes) else json.dumps(schema))
        for name, content in entries.items():
            archive.writestr(f"{name}.npy", content)
    return path


def nested(depth: int) -> bytes:
    opened = b'{"__loader__":"ListNode","__module__":"a","__class__":"b","content":['
    return opened * depth + b"]}" * depth


def packed(path: Path, compression: int) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("schema.json", b" " * 1000)
    return path


def lying(path: Path) -> Path:
    """Its schema has 200 MB, and 10 bytes by the directory."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("schema.json", "w") as member:
        for _ in range(200):
            member.write(b" " * 1_000_000)
    content = path.read_bytes()
    at = content.index(b"PK\x01\x02") + 24
    path.write_bytes(content[:at] + (10).to_bytes(4, "little") + content[at + 4 :])
    return path


HOSTILE: dict[str, tuple[Callable[[Path], Path], str]] = {
    "one array named 1000 times": (
        lambda path: write(path, node("ListNode", content=[array_of("a.npy")] * 1000), a=zeros(1_000_000)),
        "unpack to far more than the file holds",
    ),
    "a schema of 300 MB of spaces": (lambda path: write(path, b" " * 300_000_000), "unpack to far more than the file holds"),
    "a schema in bzip2": (lambda path: packed(path, zipfile.ZIP_BZIP2), "'schema.json' is packed with bzip2"),
    "a schema in LZMA": (lambda path: packed(path, zipfile.ZIP_LZMA), "'schema.json' is packed with LZMA"),
    "a schema of 200 MB that is said to have 10 bytes": (lying, "no skops file"),
    "an array of 400 MB of zeros": (lambda path: write(path, array_of("a.npy"), a=zeros(50_000_000)), "unpack to far more than the file holds"),
    "an array that claims a terabyte": (lambda path: write(path, array_of("a.npy"), a=claims("(125000000000,)")), "no skops file"),
    "objects of a shape of 80 GB": (lambda path: write(path, objects_of([100_000, 100_000], 1)), "an array of shape (100000, 100000) has values of shape (1,)"),
    "objects of a negative shape": (lambda path: write(path, objects_of([-1, -1], 1)), "no skops file"),
    "nested 100000 times": (lambda path: write(path, nested(100_000)), "no skops file"),
    "nested 900 times": (lambda path: write(path, nested(900)), "no skops file"),
    "no nodes": (lambda path: write(path, [1, 2]), "no skops file"),
    "a pickle in an array's place": (lambda path: write(path, array_of("a.npy"), a=b"cos\nsystem\n(S'true'\ntR."), "no skops file"),
    "an entry that is not there": (lambda path: write(path, array_of("../../etc/passwd")), "no skops file"),
}  # fmt: skip


def test_an_array_of_objects_has_the_shape_of_its_lists(tmp_path: Path):
    array = objects_of([2, 3], 0)
    array["content"] = [
        node("ListNode", content=[node("JsonNode", content=f'"{row}{column}"') for column in "abc"]) for row in "xy"
    ]
    model = {"__module__": "sklearn.a", "__class__": "A", "__loader__": "ObjectNode", "__id__": 1}
    model["content"] = node(
        "DictNode", key_types=node("ListNode", content=[node("JsonNode")]), content={"names": array}
    )
    found = skops_file.read(write(tmp_path / "model.skops", model)).state["names"]
    assert found.tolist() == [["xa", "xb", "xc"], ["ya", "yb", "yc"]]


@pytest.mark.parametrize("name", every(3, HOSTILE))
def test_an_archive_that_means_harm_is_refused_and_costs_little(tmp_path: Path, name: str):
    make, words = HOSTILE[name]
    path = make(tmp_path / "model.skops")
    tracemalloc.start()
    try:
        with pytest.raises(ConfigError) as caught:
            skops_file.read(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert words in str(caught.value)
    assert peak < 150_000_000
