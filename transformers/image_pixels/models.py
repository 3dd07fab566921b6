"""`python -m image_pixels.models`: make the vision service's models, each as SavedModel, TorchScript and ONNX.

efficientnet-lite0 has weights trained on ImageNet, from the package index, and sees what is on a photograph. resnet50 is the true
architecture with random weights (no index that this project uses has trained ones), for latency, equality and packaging; with
`--weights imagenet` Keras downloads trained ones from Google's storage.

    <output>/<model>/tensorflow/1/saved_model.pb, labels.txt      tensorflow_server, pixels NHWC
    <output>/<model>/torch/model.pt, model-settings.json, ...     torch_server, pixels NCHW
    <output>/<model>/onnx/model.onnx, labels.txt                  onnx_server, pixels NCHW
    <output>/<model>/weights.txt                                  which weights these are
    <output>/photos/                                              the demo's photographs
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from .fetch import class_names, photos, weights

__all__ = ["MODELS", "is_built", "main", "make"]

MODELS = ("efficientnet-lite0", "resnet50")
_TOLERANCE = 1e-4
_FILES = ("tensorflow/1/saved_model.pb", "torch/model.pt", "onnx/model.onnx")

Say = Callable[[str], None]


def is_built(output: Path, model: str) -> bool:
    """Whether all three forms of a model are there."""
    return all((output / model / file).is_file() for file in _FILES)


def _wanted(model: str, weights: str | None, seed: int | None) -> str:
    """What the weights are called in `weights.txt`, beside the three forms."""
    if model != "resnet50":
        return "trained on ImageNet"
    return (
        "trained on ImageNet, from Keras" if weights == "imagenet" else f"random, seed {42 if seed is None else seed}"
    )


def make(model: str, output: Path, cache: Path, say: Say, *, imagenet: bool = False, seed: int = 42) -> float:
    """Build one model in its three forms, and compare them.

    Args:
        model: one of `MODELS`.
        output: folder of the models.
        cache: folder of downloaded wheels.
        say: told what is being done.
        imagenet: of resnet50: with trained weights, which Keras downloads.
        seed: of random weights.

    Returns:
        The largest difference between the probabilities of any two forms, on random pixels.

    Raises:
        RuntimeError: a download failed, or the forms differ by more than 1e-4.
    """
    say("class names")
    labels = class_names(cache)
    say("TensorFlow and PyTorch are being imported")
    import torch

    from . import keras_networks
    from .export import export_onnx, export_saved_model, export_torchscript

    if model == "resnet50":
        say("weights from Keras" if imagenet else f"random weights, seed {seed}")
        tf_model = keras_networks.keras_resnet50(imagenet=imagenet, seed=seed)
        module: torch.nn.Module = keras_networks.resnet50_from_keras(tf_model)
        span = (-128.0, 128.0)
    else:
        say("trained weights")
        # An allow-listed unpickler: tensors and plain containers, no code.
        state = torch.load(io.BytesIO(weights(cache)), map_location="cpu", weights_only=True)
        lite0 = keras_networks.lite0_from_state(state)
        tf_model, module = keras_networks.keras_lite0(lite0), lite0
        span = (-1.0, 1.0)
    folder = output / model
    say("SavedModel")
    export_saved_model(tf_model, folder / "tensorflow", labels)
    say("TorchScript")
    export_torchscript(module, folder / "torch", labels)
    say("ONNX")
    export_onnx(module, folder / "onnx", labels)
    say("comparing the three")
    difference = compare(folder, np.random.default_rng(seed).uniform(*span, (2, 224, 224, 3)).astype(np.float32))
    if difference > _TOLERANCE:
        raise RuntimeError(f"{model}: the three forms differ by {difference:.1e}, more than {_TOLERANCE:.0e}")
    return difference


def compare(folder: Path, images: np.ndarray) -> float:
    """Run the three written forms on the same pixels.

    Args:
        folder: of one model.
        images: float32 [n, H, W, 3].

    Returns:
        The largest difference between the probabilities of any two.
    """
    import onnxruntime
    import tensorflow as tf
    import torch

    signature = tf.saved_model.load(str(folder / "tensorflow" / "1")).signatures["serving_default"]
    planes = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore", DeprecationWarning)  # TorchScript's own
        script = torch.jit.load(str(folder / "torch" / "model.pt"))
        answers = [script(torch.from_numpy(planes)).numpy()]
    answers.append(signature(images=tf.constant(images))["probabilities"].numpy())
    session = onnxruntime.InferenceSession(str(folder / "onnx" / "model.onnx"), providers=["CPUExecutionProvider"])
    answers.append(np.asarray(session.run(None, {"images": planes})[0]))
    return float(max(np.abs(a - b).max() for a in answers for b in answers))


def main(argv: Sequence[str] | None = None) -> int:
    """Build what is asked for and is not there yet."""
    parser = argparse.ArgumentParser(
        prog="python -m image_pixels.models",
        description="Make the vision service's models, each as SavedModel, TorchScript and ONNX.",
    )
    parser.add_argument("--output", type=Path, default=Path(".cache/vision"), help="folder of the models")
    parser.add_argument("--model", action="append", choices=MODELS, help="default: all; repeatable")
    parser.add_argument(
        "--weights", choices=("random", "imagenet"), help="of resnet50; default: those there, or random"
    )
    parser.add_argument("--seed", type=int, help="of random weights; default: 42")
    parser.add_argument("--force", action="store_true", help="build again what is there")
    arguments = parser.parse_args(argv)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    output: Path = arguments.output
    cache = output / "wheels"
    began = time.perf_counter()

    def say(text: str) -> None:
        print(f"[{time.perf_counter() - began:5.1f} s] {text}", flush=True)

    try:
        say("photographs")
        photos(cache, output / "photos")
        for model in arguments.model or MODELS:
            wanted = _wanted(model, arguments.weights, arguments.seed)
            noted = output / model / "weights.txt"
            found = noted.read_text(encoding="utf-8").strip() if noted.is_file() else _wanted(model, None, None)
            asked = arguments.weights is not None or arguments.seed is not None
            if is_built(output, model) and not arguments.force and (found == wanted or not asked):
                say(f"{model}: is there already, {found}")
                continue
            difference = make(
                model,
                output,
                cache,
                lambda text, model=model: say(f"{model}: {text}"),
                imagenet=arguments.weights == "imagenet",
                seed=42 if arguments.seed is None else arguments.seed,
            )
            noted.write_text(f"{wanted}\n", encoding="utf-8")
            say(f"{model}: SavedModel, TorchScript and ONNX agree to {difference:.1e}")
    except RuntimeError as error:
        print(f"image_pixels.models: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
