"""TorchServe's handlers, in archives and as classes, over V1, V2 and /predictions."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mar_support
from dataplane_support import outcome, serving
from mar_support import settings_of
from serinus.dataplane.plane import Plane
from serinus.errors import ConfigError, InvalidInput, ModelFailed
from serinus.hosts import build_model
from serinus.protocol.types import InferRequest, Tensor
from serinus.settings import ModelSettings
from serve_support import serving as served


def text(value: str) -> np.ndarray:
    array = np.empty(1, object)
    array[0] = value.encode()
    return array


class _Asked:
    def __init__(self, body: bytes, content_type: str, query: dict[str, str]) -> None:
        self.body, self.query = body, query
        self.headers = {"content-type": content_type, "user-agent": "test"}


async def predictions(plane: Plane, body: bytes, kind: str = "text/plain", **query: str) -> tuple[int, str, bytes]:
    """Call the handler of POST /predictions/m."""
    handler = next(handler for _, path, handler in plane.extra_routes() if path == "/predictions/m")
    status, headers, answer = await handler(_Asked(body, kind, query))
    return status, headers["content-type"], answer


async def v1(plane: Plane, *instances: Any) -> Any:
    answer = await plane.predict_v1("m", json.dumps({"instances": instances}).encode())
    return (json.loads(answer) if isinstance(answer, bytes) else answer)["predictions"]


def test_an_archive_is_code_and_is_not_opened_unless_the_operator_allows_it(tmp_path: Path):
    path = mar_support.words(tmp_path)
    for where in (path, tmp_path):
        with pytest.raises(ConfigError, match=r"whose handler is code.*--allow_implementation torchserve"):
            build_model(ModelSettings(name="m", model_dir=where))


async def test_a_custom_handler_answers_v1_v2_and_predictions(tmp_path: Path):
    async with serving(build_model, settings_of(mar_support.words(tmp_path))) as plane:
        assert [row["words"] for row in await v1(plane, {"data": "a b"}, {"body": "c"})] == [4, 2]
        answer = (await plane.infer(InferRequest("m", [Tensor("x", "BYTES", (1,), text("a b c"))]))).outputs[0]
        assert (answer.name, json.loads(answer.data.reshape(-1)[0])["words"]) == ("predict", 6)
        status, kind, body = await predictions(plane, b"a b")
        assert (status, kind, json.loads(body)["words"], json.loads(body)["agent"]) == (
            200,
            "application/json",
            4,
            "test",
        )
        status, _, body = await predictions(plane, b'"one two three"', "application/json")
        assert (status, json.loads(body)["words"]) == (200, 6)
        form = b'--B\r\nContent-Disposition: form-data; name="data"; filename="a.txt"\r\n\r\nx y\r\n--B--\r\n'
        status, _, body = await predictions(plane, form, "multipart/form-data; boundary=B")
        assert (status, json.loads(body)["words"]) == (200, 4)
        status, _, body = await predictions(plane, b"data=x", "application/x-www-form-urlencoded")
        assert (status, json.loads(body)["words"]) == (200, 2)
        details = plane.registry.find("m", "").model.details
        assert (details["host"], details["handler"], details["batch_size"]) == ("torchserve", "words_handler.py", 4)


async def test_items_of_concurrent_requests_of_all_kinds_share_batches_of_torchserves_size(tmp_path: Path):
    async with serving(build_model, settings_of(mar_support.words(tmp_path))) as plane:
        answers = await asyncio.gather(
            v1(plane, {"data": "a"}),
            v1(plane, {"data": "a b"}),
            predictions(plane, b"a b c"),
            plane.infer(InferRequest("m", [Tensor("x", "BYTES", (1,), text("a b c d"))])),
        )
        found = [
            answers[0][0],
            answers[1][0],
            json.loads(answers[2][2]),
            json.loads(answers[3].outputs[0].data.reshape(-1)[0]),
        ]
        assert [row["words"] for row in found] == [2, 4, 6, 8]
        assert [row["batch"] for row in found] == [4] * 4
        assert [row["batch"] for row in await v1(plane, *({"data": "a"} for _ in range(6)))] == [4, 4, 4, 4, 2, 2]
        assert await v1(plane) == []


async def test_a_handler_that_raises_fails_its_request_alone_and_tells_no_secret(tmp_path: Path):
    async with serving(build_model, settings_of(mar_support.words(tmp_path))) as plane:
        good, bad = await asyncio.gather(v1(plane, {"data": "a"}), predictions(plane, b"bad"))
        assert good[0]["words"] == 2
        assert bad[0] == 500
        assert b"secret" not in bad[2]
        status, _, body = await predictions(plane, b"refused")
        assert (status, json.loads(body)["words"]) == (422, 2)
        refused = await outcome(plane, InferRequest("m", [Tensor("x", "BYTES", (1,), text("refused"))]))
        assert isinstance(refused, InvalidInput)
        assert refused.http_status == 422
        status, _, body = await predictions(plane, b"{", "application/json")
        assert status == 400
        for body in (b"[]", b"{}", b'{"instances": 1}'):
            with pytest.raises(InvalidInput, match=r"instances|object"):
                await plane.predict_v1("m", body)


async def test_a_function_is_a_handler_too(tmp_path: Path):
    path = mar_support.archive(tmp_path / "echo.mar", "echo:handle", {"echo.py": mar_support.FUNCTION})
    async with serving(build_model, settings_of(path)) as plane:
        assert await predictions(plane, b'{"a": 1}', "application/json") == (200, "text/plain", b"echo: {'a': 1}")


async def test_two_archives_may_each_have_neighbours_of_one_name(tmp_path: Path):
    paths = []
    for number in (1, 2):
        files = {
            "words_handler.py": mar_support.WORDS,
            "words.py": f"def count(text):\n    return {number}\n",
            "weights.json": '{"scale": 1}',
        }
        paths.append(mar_support.archive(tmp_path / f"w{number}.mar", "words_handler.py", files))
    for path, number in zip(paths, (1, 2), strict=True):
        async with serving(build_model, settings_of(path)) as plane:
            assert (await v1(plane, {"data": "x"}))[0]["words"] == number


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive made by TorchServe's own archiver: an eager model with its state dict, a handler, labels."""
    import torch

    folder = tmp_path_factory.mktemp("network")
    (folder / "net.py").write_text(mar_support.NET)
    (folder / "row_handler.py").write_text(mar_support.NETWORK)
    (folder / "index_to_name.json").write_text('{"0": "cat", "1": ["n02", "dog"]}')
    torch.manual_seed(0)
    layer = torch.nn.Linear(4, 2)
    torch.save({"layer.weight": layer.weight.data, "layer.bias": layer.bias.data}, folder / "net.pth")
    flags = [
        *("--model-name", "rows", "--version", "1.0", "--model-file", "net.py", "--serialized-file", "net.pth"),
        *("--handler", "row_handler.py", "--extra-files", "index_to_name.json", "--export-path", "."),
    ]
    code = "from model_archiver.model_packaging import generate_model_archive; generate_model_archive()"
    subprocess.run([sys.executable, "-c", code, *flags], cwd=folder, check=True, timeout=120)
    return folder / "rows.mar"


@pytest.mark.slow
async def test_an_archive_of_torchserves_own_archiver_with_a_base_handler_is_served(network: Path):
    import torch

    rows = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    state = torch.load(network.parent / "net.pth", weights_only=True)
    expected = rows @ state["layer.weight"].numpy().T + state["layer.bias"].numpy()
    async with serving(build_model, settings_of(network)) as plane:
        got = await v1(plane, *({"data": row.tolist()} for row in rows))
        np.testing.assert_allclose([row["scores"] for row in got], expected, rtol=1e-5)
        assert [row["label"] for row in got] == [["cat", "dog"][index] for index in expected.argmax(axis=1)]
        refused = await outcome(plane, InferRequest("m", [Tensor.of("x", np.zeros(3, np.float32))]))
        assert isinstance(refused, InvalidInput)
        assert "four numbers were expected" in str(refused)


@pytest.mark.slow  # imports PyTorch
async def test_a_class_of_a_base_handler_is_served_by_its_name(network: Path):
    handler = network.parent / "row_handler.py"
    settings = ModelSettings(
        name="m",
        implementation=f"{handler}:RowHandler",
        model_dir=network.parent,
        extra={"serialized_file": "net.pth", "model_file": "net.py", "batch_size": 8},
    )
    sys.path.append(str(network.parent))  # --class is the operator's own word, and its folder is on the module path
    try:
        async with serving(build_model, settings) as plane:
            (got,) = await v1(plane, {"data": [0, 0, 0, 0]})
            assert got["label"] in ("cat", "dog")
            assert plane.registry.find("m", "").model.details["batch_size"] == 8
    finally:
        sys.path.remove(str(network.parent))


@pytest.mark.slow
def test_a_folder_called_ts_is_not_taken_for_torchserve(network: Path, tmp_path: Path):
    (tmp_path / "ts").mkdir()
    (tmp_path / "ts" / "model.pt").write_bytes(b"")
    code = (
        "from serinus.hosts import implementations\n"
        f"found = implementations.resolve({str(network.parent / 'row_handler.py') + ':RowHandler'!r}).target\n"
        "print(found.__mro__[1].__module__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout.strip() == "serinus.hosts.torchserve.base_handler", done.stderr


@pytest.mark.parametrize(
    ("handler", "files", "words"),
    [
        ("image_classifier", {}, "one of TorchServe's own handlers needs torchserve"),
        ("h.py", {"h.py": "x = 1"}, "one class with a method 'handle'.*there are none"),
        ("h.py:other", {"h.py": "def handle(data, context): return None"}, "has no function 'other'"),
        ("h.py", {"h.py": "raise ValueError('no')"}, "cannot be initialised: no"),
        ("h.py", {"h.py": "class H:\n    def handle(self, d, c): ..."}, "cannot be initialised"),
    ],
)
async def test_a_handler_that_cannot_be_loaded_is_refused_in_words(
    handler: str, files: dict[str, str | bytes], words: str, tmp_path: Path
):
    path = mar_support.archive(tmp_path / "m.mar", handler, files)
    with pytest.raises(ConfigError, match=words):
        async with serving(build_model, settings_of(path)):
            pass


async def test_a_handler_that_answers_another_number_of_items_fails(tmp_path: Path):
    code = "def handle(data, context):\n    return [1, 2, 3]\n"
    path = mar_support.archive(tmp_path / "m.mar", "h.py", {"h.py": code})
    async with serving(build_model, settings_of(path)) as plane:
        failed = await outcome(plane, InferRequest("m", [Tensor("x", "BYTES", (1,), text("a"))]))
        assert isinstance(failed, ModelFailed)
        assert "3 answers to a batch of 1" in str(failed)


@pytest.mark.slow
def test_serinus_serve_has_torchserves_paths(tmp_path: Path):
    path = mar_support.words(tmp_path)
    flags = ("--model_name", "m", "--model_dir", str(path), "--allow_implementation", "torchserve")
    with served(tmp_path, *flags) as server:
        assert server.ask("GET", "/ping") == (200, {"status": "Healthy"})
        status, answer = server.ask("POST", "/predictions/m", b"a b", {"Content-Type": "text/plain"})
        assert (status, answer["words"]) == (200, 4)
        status, answer = server.ask("POST", "/v1/models/m:predict", {"instances": [{"data": "a"}]})
        assert (status, answer["predictions"][0]["words"]) == (200, 2)
        assert server.stop() == 0
