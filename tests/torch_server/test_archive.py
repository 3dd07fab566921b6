"""Exported programs and TorchScript that do more than compute: refused before PyTorch loads them, for loading is enough to run some."""

from __future__ import annotations

import functools
import io
import json
import pickle
import re
import tempfile
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
torch_classes = Deferred("torch_classes")
Dim = Deferred("torch.export", "Dim")
export = Deferred("torch.export", "export")
save = Deferred("torch.export", "save")

pytestmark = [
    pytest.mark.slow,  # PyTorch alone takes seconds to import
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]


IDS = np.arange(10).reshape(2, 5) % 10


@functools.cache
def _exported(name: str) -> bytes:
    """Export once what each test changes in its own way: that takes longer than all else here."""
    if name == "program":
        shapes = ({0: Dim("batch"), 1: Dim("length", min=2)},)
        made = export(torch_classes.Layers().eval(), (torch.from_numpy(IDS),), dynamic_shapes=shapes)
    else:
        given = (torch.randn(3, 4), torch.randn(3))
        made = export(torch_classes.Twins(), given, dynamic_shapes=({0: Dim("n")}, {0: Dim("n")}))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.pt2")  # its stem is the first folder within
        save(made, path)
        return path.read_bytes()


def program(folder: Path) -> Path:
    path = folder / "model.pt2"
    path.write_bytes(_exported("program"))
    return path


def twins(folder: Path) -> Path:
    path = folder / "model.pt2"
    path.write_bytes(_exported("twins"))
    return path


def loaded(folder: Path, *allowed: str) -> TorchModel:
    model = TorchModel(ModelSettings(name="m", model_dir=folder, allow_implementation=allowed))
    model.load()
    return model


def rewritten(path: Path, change: Callable[[dict[str, bytes]], None]) -> None:
    """Change an archive's entries, by name without its first folder."""
    with zipfile.ZipFile(path) as archive:
        entries = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    change(entries)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in entries.items():
            archive.writestr(f"{path.stem}/{name}", content)


def in_program(change: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, bytes]], None]:
    def apply(entries: dict[str, bytes]) -> None:
        document = json.loads(entries["models/model.json"])
        change(document)
        entries["models/model.json"] = json.dumps(document).encode()

    return apply


@pytest.mark.parametrize("make", [program, twins])
def test_an_honest_program_is_loaded_and_answers(make: Callable[[Path], Path], tmp_path: Path):
    make(tmp_path)
    model = loaded(tmp_path)
    shapes = {"ids": IDS} if make is program else {"x": np.ones((3, 4), "f"), "y": np.ones(3, "f")}
    assert model.predict(shapes, Call())


def test_an_archive_that_is_written_again_is_still_loaded(tmp_path: Path):
    rewritten(program(tmp_path), lambda entries: None)
    assert loaded(tmp_path).outputs


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.marker,)


def evil(marker: Path) -> bytes:
    buffer = io.BytesIO()
    torch.save(Evil(marker), buffer)
    return buffer.getvalue()


def set_first_target(value: str) -> Callable[[dict[str, bytes]], None]:
    def change(document: dict[str, Any]) -> None:
        document["graph_module"]["graph"]["nodes"][0]["target"] = value

    return in_program(change)


def set_shape(value: str) -> Callable[[dict[str, bytes]], None]:
    def change(document: dict[str, Any]) -> None:
        document["graph_module"]["graph"]["tensor_values"]["ids"]["sizes"][0]["as_expr"]["expr_str"] = value

    return in_program(change)


def set_guard(value: str) -> Callable[[dict[str, bytes]], None]:
    return in_program(lambda document: document["guards_code"].append(value))


def set_name(document: dict[str, Any]) -> None:
    text = json.dumps(document).replace('"name": "ids"', "\"name\": \"ids=__import__('os').system('touch x')\"")
    document.clear()
    document.update(json.loads(text))


def set_pytree(kind: dict[str, Any]) -> Callable[[dict[str, bytes]], None]:
    def change(document: dict[str, Any]) -> None:
        signature = document["graph_module"]["module_call_graph"][0]["signature"]
        version, tree = json.loads(signature["in_spec"])
        tree["children_spec"][0].update(kind)
        signature["in_spec"] = json.dumps([version, tree])

    return in_program(change)


def pickled_weight(marker: Path) -> Callable[[dict[str, bytes]], None]:
    def change(entries: dict[str, bytes]) -> None:
        config = json.loads(entries["data/weights/model_weights_config.json"])
        payload = next(iter(config["config"].values()))
        payload["use_pickle"] = True
        entries["data/weights/model_weights_config.json"] = json.dumps(config).encode()
        entries[f"data/weights/{payload['path_name']}"] = evil(marker)

    return change


def opaque_constant(marker: Path) -> Callable[[dict[str, bytes]], None]:
    def change(entries: dict[str, bytes]) -> None:
        config = json.loads(entries["data/constants/model_constants_config.json"])
        payload = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
        config["config"]["thing"] = payload
        entries["data/constants/model_constants_config.json"] = json.dumps(config).encode()
        entries["data/constants/tensor_0"] = pickle.dumps(Evil(marker))

    return change


DOES_MORE: dict[str, tuple[Callable[[Path], Callable[[dict[str, bytes]], None]], str]] = {
    "sample inputs": (
        lambda m: lambda e: e.update({"data/sample_inputs/model.pt": evil(m)}),
        "a pickle in data/sample_inputs",
    ),
    "old weights": (
        lambda m: lambda e: e.update({"data/weights/model.pt": evil(m)}),
        "a pickle in data/weights/model.pt",
    ),
    "weight": (pickled_weight, "a pickle in data/weights/weight_0"),
    "opaque constant": (opaque_constant, "the object 'opaque_obj_0'"),
    "library": (
        lambda _: lambda e: e.update({"data/aotinductor/model/a.so": b""}),
        "entry 'data/aotinductor/model/a.so'",
    ),
    "old program": (
        lambda _: lambda e: e.update({"serialized_exported_program.json": b"{}"}),
        "neither a program nor its tensors",
    ),
    "system": (lambda _: set_first_target("torch.os.system"), "the target 'torch.os.system'"),
    "load_library": (lambda _: set_first_target("torch.ops.load_library"), "the target 'torch.ops.load_library'"),
    "from_file": (
        lambda _: set_first_target("torch.ops.aten.from_file.default"),
        "--allow_implementation 'torch.ops.aten.from_file",
    ),
    "own operator": (
        lambda _: set_first_target("torch.ops.mine.op.default"),
        "--allow_implementation 'torch.ops.mine.op.default'",
    ),
    "call": (lambda _: set_first_target("_operator.call"), "the target '_operator.call'"),
    "shape with a call": (lambda _: set_shape("__import__('os').system('touch x')"), "the shape"),
    "shape with S": (lambda _: set_shape("S('x')"), "the shape"),
    "shape with text": (lambda _: set_shape("Symbol('os.system(1)')"), "the shape"),
    "guard": (lambda _: set_guard("__import__('os').system('touch x') == 0"), "the guard"),
    "guard of globals": (lambda _: set_guard("L.__class__ == 0"), "the guard"),
    "name": (lambda _: in_program(set_name), "the name"),
    "defaultdict": (
        lambda _: set_pytree(
            {"context": json.dumps({"default_factory_module": "antigravity", "default_factory_name": "x"})}
        ),
        "a pytree that names a module",
    ),
    "enumeration": (
        lambda _: set_pytree({"context": json.dumps([{"__enum__": True, "fqn": "antigravity:x"}])}),
        "a pytree that names a module",
    ),
}


@pytest.mark.parametrize("case", DOES_MORE)
def test_a_program_that_brings_code_is_refused_and_nothing_of_it_runs(case: str, tmp_path: Path):
    change, said = DOES_MORE[case]
    marker = tmp_path / "ran"
    path = twins(tmp_path) if case.startswith("guard") else program(tmp_path)
    rewritten(path, change(marker))
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path)
    assert said in str(caught.value)
    assert not marker.exists()


def test_entries_that_two_readers_see_differently_are_refused(tmp_path: Path):
    path = program(tmp_path)
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("model/models/model.json", b"{}")
    with pytest.raises(ConfigError, match=r"two readers|can do more"):
        loaded(tmp_path)


@pytest.mark.parametrize(
    ("module", "operator"), [("Reads", "torch.ops.aten.from_file"), ("Writes", "torch.ops.aten.save")]
)
def test_torchscript_that_reads_or_writes_files_is_refused_unless_the_operator_allows_it(
    module: str, operator: str, tmp_path: Path
):
    torch.jit.script(getattr(torch_classes, module)()).save(str(tmp_path / "model.pt"))  # type: ignore[union-attr] # a ScriptModule
    with pytest.raises(ConfigError, match=f"--allow_implementation '{operator}'"):
        loaded(tmp_path)
    assert loaded(tmp_path, operator).platform == "pytorch_torchscript"


SPELLINGS = {
    "getattr": 'getattr(torch, "save")(x, place)',
    "of a namespace": 'getattr(ops.aten, "save")(x, place)',
    "nested": 'getattr(getattr(ops, "aten"), "save")(x, place)',
    "octal digits": r'getattr(torch, "\163ave")(x, place)',
    "texts side by side": 'getattr(torch, "sa" "ve")(x, place)',
    "three quotes": 'getattr(torch, """save""")(x, place)',
    "an argument with brackets": 'getattr((torch), "save")(x, place)',
    "a broken line": "torch.\\\n      save(x, place)",
    "a comment": "(torch.# then\n      save)(x, place)",
    "two comments": "(torch # one.\n      . # two\n\n      save)(x, place)",
    "another line": "(torch.\n      save)(x, place)",
}
"""`torch.save(x, place)` as TorchScript's parser takes it."""


@pytest.mark.parametrize("case", SPELLINGS)
def test_an_operator_that_reaches_files_is_found_however_it_is_spelled(case: str, tmp_path: Path):
    made, marker = io.BytesIO(), tmp_path / "ran"
    spelled = b"_ = " + SPELLINGS[case].replace("place", f'"{marker}"').encode()
    torch.jit.save(torch.jit.script(torch_classes.Named()), made)
    path = tmp_path / "model.pt"
    with zipfile.ZipFile(made) as honest, zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as hostile:
        for name in honest.namelist():
            code = honest.read(name)
            if name.endswith(".py"):
                code = re.sub(rb"(\n +)(return )", lambda found: found[1] + spelled + found[0], code)
            hostile.writestr(name, code)
    with pytest.raises(ConfigError, match=r"--allow_implementation 'torch\.ops\."):
        loaded(tmp_path)
    torch.jit.load(str(path))(torch.ones(1, 3))  # nothing but the check keeps it out
    assert marker.exists()


def test_modules_without_names_are_loaded(tmp_path: Path):
    within = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Linear(3, 1)))
    torch.jit.script(torch.nn.Sequential(within, within)).save(str(tmp_path / "model.pt"))
    with zipfile.ZipFile(tmp_path / "model.pt") as archive:
        assert any(b"getattr(" in archive.read(name) for name in archive.namelist() if name.endswith(".py"))
    assert loaded(tmp_path).platform == "pytorch_torchscript"


def test_the_class_of_a_state_dict_is_for_the_operator_to_choose(tmp_path: Path):
    torch.save({}, tmp_path / "model.pth")
    settings = ModelSettings(
        name="m", model_dir=tmp_path, extra={"class": "antigravity:Module"}, inputs=(TensorSpec("x", "FP32", (-1,)),)
    )
    with pytest.raises(ConfigError, match=r"--allow_implementation 'antigravity\.Module', or give --extra class="):
        TorchModel(settings).load()
