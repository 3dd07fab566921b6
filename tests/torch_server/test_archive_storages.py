"""Archives whose tensors reach beyond the bytes that are held for them: PyTorch would follow, so they are refused in words."""

from __future__ import annotations

import pickle
import tracemalloc
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deferred import Deferred
from serinus.errors import ConfigError
from serinus.model import Call
from serinus.protocol.types import TensorSpec
from serinus.settings import ModelSettings
from torch_server import TorchModel

torch = Deferred("torch")
check_storages = Deferred("torch_server.archive_storages", "check_storages")

pytestmark = [
    pytest.mark.slow,  # importing PyTorch takes ~4 s
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
]


def _script(folder: Path) -> Path:
    module = torch.nn.Sequential(torch.nn.Conv1d(1, 4, 3), torch.nn.BatchNorm1d(4), torch.nn.Flatten()).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(module).save(str(folder / "model.pt"))
    return folder / "model.pt"


def _load(path: Path) -> TorchModel:
    inputs = (TensorSpec("x", "FP32", (-1, 1, 9)),)
    model = TorchModel(ModelSettings(name="m", model_dir=path, inputs=inputs, threads=1))
    model.load()
    return model


def _rewrite(path: Path, change: Callable[[dict[str, bytes]], None]) -> None:
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    change(entries)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)


def _cut(size: int) -> Callable[[dict[str, bytes]], None]:
    def change(entries: dict[str, bytes]) -> None:
        entries["model/data/0"] = entries["model/data/0"][:size]

    return change


def _swap(old: bytes, new: bytes) -> Callable[[dict[str, bytes]], None]:
    def change(entries: dict[str, bytes]) -> None:
        assert entries["model/data.pkl"].count(old) >= 1
        entries["model/data.pkl"] = entries["model/data.pkl"].replace(old, new, 1)

    return change


DAMAGE: dict[str, tuple[Callable[[dict[str, bytes]], None], str]] = {
    "an empty record": (_cut(0), r"storage '0' needs 48 bytes, the archive holds 0"),
    "a short record": (_cut(47), r"storage '0' needs 48 bytes, the archive holds 47"),
    "no record": (
        lambda entries: entries.pop("model/data/0") and None,
        r"storage '0' needs 48 bytes, the archive holds none",
    ),
    "more elements than bytes": (_swap(b"K\x0ct", b"K\x0dt"), r"needs 52 bytes, the archive holds 48"),
    "sizes beyond the storage": (
        _swap(b"K\x04K\x01K\x03", b"K\x7fK\x01K\x03"),
        r"a tensor of sizes \[127, 1, 3\] reaches element 380",
    ),
    "a pickle cut off": (
        lambda entries: entries.update({"model/data.pkl": entries["model/data.pkl"][:-9]}),
        r"data.pkl cannot be read",
    ),
    "a pickle of something else": (
        lambda entries: entries.update({"model/data.pkl": b"garbage"}),
        r"data.pkl cannot be read",
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_tensor_beyond_its_bytes_is_refused_in_words(tmp_path: Path, case: str):
    change, said = DAMAGE[case]
    path = _script(tmp_path)
    _load(path)
    _rewrite(path, change)
    with pytest.raises(ConfigError, match=said) as caught:
        _load(path)
    assert str(path) in str(caught.value)


def test_a_good_archive_is_served_as_before(tmp_path: Path):
    path = _script(tmp_path)
    check_storages(path)
    _rewrite(path, lambda entries: None)
    rows = np.random.default_rng(0).normal(size=(3, 1, 9)).astype(np.float32)
    wanted = torch.jit.load(str(path))(torch.from_numpy(rows)).detach().numpy()
    got = _load(path).predict({"x": rows}, Call())
    np.testing.assert_allclose(next(iter(got.values())), wanted, atol=1e-6)


def test_inputs_that_were_traced_are_no_tensors_of_the_model(tmp_path: Path):
    path = tmp_path / "model.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(torch.nn.Conv1d(1, 4, 3).eval(), torch.zeros(2, 1, 9)).save(str(path))
    with zipfile.ZipFile(path) as archive:
        assert "model/traced_inputs.pkl" in archive.namelist()
    assert _load(path).details["file"] == "model.pt"


def test_tensors_of_every_kind_pass(tmp_path: Path):
    held: dict[str, Any] = {
        f"{dtype}": torch.zeros(3, 2, dtype=dtype)
        for dtype in (
            torch.float64,
            torch.float16,
            torch.bfloat16,
            torch.int64,
            torch.int8,
            torch.bool,
            torch.complex64,
        )
    }
    whole = torch.arange(12.0).reshape(3, 4)
    held |= {"view": whole[1:, ::2], "turned": whole.T, "none": torch.zeros(0, 5), "number": torch.tensor(1.5)}
    held["again"] = held["number"]
    torch.save(held, tmp_path / "state.pth")
    check_storages(tmp_path / "state.pth")


def test_nothing_that_a_pickle_names_is_called(tmp_path: Path):
    class Bad:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "touched",))

    with zipfile.ZipFile(tmp_path / "m.pt", "w") as archive:
        archive.writestr("model/data.pkl", pickle.dumps(Bad()))
    check_storages(tmp_path / "m.pt")
    assert not (tmp_path / "touched").exists()


def _archive(path: Path, pickled: bytes, compression: int = zipfile.ZIP_STORED, **records: bytes) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("model/data.pkl", pickled)
        for name, content in records.items():
            archive.writestr(f"model/data/{name}", content)
    return path


@pytest.mark.parametrize(
    ("pickled", "compression", "records", "said"),
    [
        pytest.param(b"\x80\x02]r\xff\xff\xff\x07.", zipfile.ZIP_STORED, {}, "place 134217727 of its memo, of a pickle of 9 bytes",
                     id="a memo of 2 GiB"),
        pytest.param(b"\x80\x02" + b"ca\nb\n0" * 20_000_000, zipfile.ZIP_DEFLATED, {}, "data.pkl has 120000002 bytes|far more than",
                     id="a pickle of 120 MB"),
        pytest.param(b"\x80\x02N.", zipfile.ZIP_DEFLATED, {"0": bytes(100 << 20)}, "unpack to 104857604 bytes, far more than the",
                     id="a record of 100 MiB"),
        pytest.param(b"\x80\x02N.", zipfile.ZIP_BZIP2, {}, "packed with bzip2", id="a pickle in bzip2"),
    ],
)  # fmt: skip
def test_an_archive_that_would_fill_the_memory_is_refused(
    tmp_path: Path, pickled: bytes, compression: int, records: dict[str, bytes], said: str
):
    path = _archive(tmp_path / "m.pt", pickled, compression, **records)
    tracemalloc.start()
    try:
        with pytest.raises(ConfigError, match=said):
            check_storages(path)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


def test_names_in_a_pickle_cost_no_class_each(tmp_path: Path):
    names = b"".join(b"ca\nb%d\n" % number for number in range(20_000))
    path = _archive(tmp_path / "m.pt", b"\x80\x02(" + names + b"t.")
    tracemalloc.start()
    try:
        check_storages(path)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda body: body[:-200], "is damaged|no archive|not TorchScript|not a file"),
        (lambda body: body.replace(b"model/code", b"mod\xffl/code"), "cannot be read|not TorchScript|damaged"),
        (lambda body: body.replace(b"_rebuild_tensor_v2", b"_rebuild_tensor_v1", 1), "damaged|CRC"),
    ],
)
def test_an_archive_that_is_damaged_outside_its_entries_is_refused_in_words(
    tmp_path: Path, damage: Callable[[bytes], bytes], said: str
):
    path = _script(tmp_path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ConfigError, match=said):
        _load(path)
