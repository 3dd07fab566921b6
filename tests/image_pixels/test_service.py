"""`ImagePixels` in front of a model, in one process: V2, V1, the binary extension, what is wanted and what is refused."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest

from deferred import Deferred
from representative import every
from serinus import InferRequest, InferResponse, ModelSettings, RequestedOutput, Tensor
from serinus.dataplane.plane import Plane
from serinus.errors import InvalidInput, SerinusError
from serinus.protocol import proto_codec
from serinus.protocol.rest_codec import RestCodec
from vision_support import bytes_array, colour_model, picture, plane_of, small_recipe

ImagePixels = Deferred("image_pixels.transformer", "ImagePixels")

RED, GREEN, BLUE = (picture(colour=colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255)))
SURE = float(np.exp(5.1) / (np.exp(5.1) + 2))
"""Softmax of (255 * 0.02, 0, 0)."""
CODEC = RestCodec()


@contextlib.asynccontextmanager
async def colours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str = "NHWC", **recipe: Any
) -> AsyncIterator[Plane]:
    small_recipe(monkeypatch, layout=layout, **recipe)
    folder = colour_model(tmp_path / "model", layout=layout)
    settings = ModelSettings(name="vision", implementation="onnx_server", model_dir=folder)
    async with plane_of(settings, transformer="image_pixels") as plane:
        yield plane


def request(*pictures: bytes, shape: tuple[int, ...] | None = None, **fields: Any) -> InferRequest:
    array = bytes_array(pictures).reshape(shape or (len(pictures),))
    return InferRequest("vision", [Tensor("image", "BYTES", array.shape, array)], **fields)


def data(response: InferResponse, name: str) -> list[Any]:
    tensor = response.output(name)
    assert tensor is not None
    return tensor.data.tolist()


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
@pytest.mark.parametrize("shape", [(3,), (3, 1)], ids=str)
async def test_pictures_become_labels_probabilities_and_classes(tmp_path, monkeypatch, layout, shape):
    async with colours(tmp_path, monkeypatch, layout) as plane:
        response = await plane.infer(request(RED, BLUE, GREEN, shape=shape, id="7"))
        assert response.id == "7"
        assert [(tensor.name, tensor.datatype, tensor.shape) for tensor in response.outputs] == [
            ("label", "BYTES", (3, 2)),
            ("probability", "FP32", (3, 2)),
            ("class", "INT64", (3, 2)),
        ]
        assert [row[0] for row in data(response, "label")] == [b"red", b"blue", b"green"]
        assert [row[0] for row in data(response, "class")] == [0, 2, 1]
        assert [row[0] for row in data(response, "probability")] == pytest.approx([SURE] * 3, rel=1e-5)


async def test_a_request_says_how_many_classes_it_wants(tmp_path, monkeypatch):
    async with colours(tmp_path, monkeypatch) as plane:
        response = await plane.infer(request(RED, parameters={"top_k": 3}))
        assert response.outputs[0].shape == (1, 3)
        response = await plane.infer(request(RED, parameters={"top_k": 1}, outputs=[RequestedOutput("class")]))
        assert [(tensor.name, tensor.shape) for tensor in response.outputs] == [("class", (1, 1))]
        for wrong in (0, "2", True):
            with pytest.raises(InvalidInput, match="'top_k' is"):
                await plane.infer(request(RED, parameters={"top_k": wrong}))


async def test_the_models_own_output_is_there_whole_and_classified(tmp_path, monkeypatch):
    async with colours(tmp_path, monkeypatch) as plane:
        whole = await plane.infer(request(GREEN, outputs=[RequestedOutput("probabilities")]))
        assert whole.outputs[0].datatype == "FP32"
        assert whole.outputs[0].data[0].argmax() == 1
        classified = await plane.infer(
            request(GREEN, outputs=[RequestedOutput("probabilities", {"classification": 2})])
        )
        assert classified.outputs[0].datatype == "BYTES"
        value, index, label = classified.outputs[0].data[0, 0].decode().split(":")
        assert (float(value), index, label) == (pytest.approx(SURE, rel=1e-5), "1", "green")
        with pytest.raises(
            InvalidInput, match="output 'nope' is not one of label, probability, class, or 'probabilities'"
        ):
            await plane.infer(request(GREEN, outputs=[RequestedOutput("nope")]))


async def test_v1_instances_are_taken_in_every_form_of_the_field(tmp_path, monkeypatch):
    text = base64.b64encode(BLUE).decode()
    forms = [
        {"b64": text},
        text,
        {"image": {"b64": text}},
        {"image_bytes": {"b64": text}, "key": "1"},
        {"data": text},
        {"picture": {"b64": text}},
        f"data:image/png;base64,{text}",
        text[:40] + "\n" + text[40:],
    ]
    async with colours(tmp_path, monkeypatch) as plane:
        answer = await plane.predict_v1("vision", orjson.dumps({"instances": forms, "top_k": 1}))
        assert isinstance(answer, dict)
        assert [best[0]["label"] for best in answer["predictions"]] == ["blue"] * len(forms)
        assert answer["predictions"][0][0] == {
            "label": "blue",
            "class": 2,
            "probability": pytest.approx(SURE, rel=1e-5),
        }


async def test_bytes_travel_over_the_binary_extension_and_grpc(tmp_path, monkeypatch):
    sent = request(RED, GREEN)
    async with colours(tmp_path, monkeypatch) as plane:
        body = CODEC.encode_request(sent, binary=True)
        decoded = CODEC.decode_request(b"".join(body.chunks), model_name="vision", json_length=body.json_length)
        assert [row[0] for row in data(await plane.infer(decoded), "label")] == [b"red", b"green"]
        headers = {"content-type": "application/grpc", "user-agent": "grpc-python/1.0"}
        decoded = proto_codec.decode_request(proto_codec.encode_request(sent), headers=headers)
        assert [row[0] for row in data(await plane.infer(decoded), "label")] == [b"red", b"green"]


async def test_base64_is_taken_in_v2_json_which_has_no_bytes(tmp_path, monkeypatch):
    async with colours(tmp_path, monkeypatch) as plane:
        assert data(await plane.infer(request(base64.b64encode(GREEN))), "label")[0][0] == b"green"


async def test_bad_pictures_are_a_400_that_names_their_rows_and_nothing_is_predicted(tmp_path, monkeypatch):
    async with colours(tmp_path, monkeypatch) as plane:
        with pytest.raises(
            InvalidInput, match=r"input 'image', row 1: .*no JPEG.*; input 'image', row 3: no bytes"
        ) as caught:
            await plane.infer(request(RED, b"not a picture", GREEN, b""))
        assert "row 0" not in str(caught.value)
        body = {"instances": [{"b64": base64.b64encode(RED[:60]).decode()}, {"b64": base64.b64encode(RED).decode()}]}
        with pytest.raises(InvalidInput, match=r"instances\[0\]: "):
            await plane.predict_v1("vision", orjson.dumps(body))
        assert plane.statistics("vision")[0]["inference_stats"]["success"]["count"] == 0


REFUSED = {
    "no instances": ({}, "'instances': a list"),
    "no list": ({"instances": "x"}, "'instances'|\"instances\""),
    "an empty list": ({"instances": []}, "'instances': a list"),
    "not base64": ({"instances": ["%%%"]}, r"instances\[0\] is not base64"),
    "numbers": ({"instances": [[1, 2]]}, r"instances\[0\] holds no picture"),
    "an object of other things": ({"instances": [{"a": 1, "b": 2}]}, r"instances\[0\] holds no picture"),
    "an empty object": ({"instances": [{}]}, r"instances\[0\] holds no picture"),
}


@pytest.mark.parametrize("name", every(3, REFUSED))
async def test_what_holds_no_pictures_is_refused_in_v1(tmp_path, monkeypatch, name):
    body, reason = REFUSED[name]
    async with colours(tmp_path, monkeypatch) as plane:
        with pytest.raises(InvalidInput, match=reason):
            await plane.predict_v1("vision", orjson.dumps(body))


async def test_tensors_that_are_no_pictures_are_refused(tmp_path, monkeypatch):
    async with colours(tmp_path, monkeypatch, max_images=2) as plane:
        numbers = Tensor.of("image", np.zeros((1, 4), np.float32))
        wide = Tensor("image", "BYTES", (1, 2), bytes_array([RED, RED]).reshape(1, 2))
        one = request(RED).inputs[0]
        for inputs, reason in (
            ([numbers], "datatype is FP32, BYTES was expected"),
            ([wide], r"shape is \[1, 2\]"),
            (
                [one, Tensor("b", "BYTES", (1,), bytes_array([RED]))],
                "one input of image files was expected, there are 2",
            ),
        ):
            with pytest.raises(InvalidInput, match=reason):
                await plane.infer(InferRequest("vision", inputs))
        with pytest.raises(InvalidInput, match="holds 3 pictures, the limit is 2"):
            await plane.infer(request(RED, RED, RED))


async def test_concurrent_requests_keep_their_own_answers(tmp_path, monkeypatch):
    import asyncio

    async with colours(tmp_path, monkeypatch) as plane:
        pictures = [(RED, b"red"), (GREEN, b"green"), (BLUE, b"blue")] * 8
        answers = await asyncio.gather(
            *(plane.infer(request(content, id=str(i))) for i, (content, _) in enumerate(pictures))
        )
        for i, (response, (_, label)) in enumerate(zip(answers, pictures, strict=True)):
            assert (response.id, data(response, "label")[0][0]) == (str(i), label)


async def test_pictures_are_decoded_off_the_event_loop(tmp_path, monkeypatch):
    import threading

    from image_pixels import transformer

    seen: set[str] = set()

    def decode(content: bytes, recipe: Any) -> np.ndarray:
        seen.add(threading.current_thread().name)
        return original(content, recipe)

    original = transformer.decode
    async with colours(tmp_path, monkeypatch) as plane:
        monkeypatch.setattr(transformer, "decode", decode)
        await plane.infer(request(RED, GREEN))
    assert seen
    assert all(name.startswith("image-pixels") for name in seen)


async def test_a_wrong_recipe_is_told_at_start(tmp_path, monkeypatch):
    with pytest.raises(SerinusError, match="IMAGE_PIXELS_LAYOUT is 'CHWN'; accepted are NHWC, NCHW"):
        async with colours(tmp_path, monkeypatch, layout="CHWN"):
            pass


def test_it_describes_its_tensors():
    model = ImagePixels("vision")
    assert model.get_input_types() == [{"name": "image", "datatype": "BYTES", "shape": [-1]}]
    assert [entry["name"] for entry in model.get_output_types()] == ["label", "probability", "class"]
    model.stop()
