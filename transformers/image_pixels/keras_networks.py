"""The two networks in Keras, and their weights on the way to and from PyTorch's."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
import keras  # after the variable, which TensorFlow reads when it is imported
from keras import layers

from .networks import LITE0_BLOCKS, RESNET50_STACKS, EfficientNetLite0, ResNet50

__all__ = ["keras_lite0", "keras_resnet50", "lite0_from_state", "resnet50_from_keras"]


def keras_resnet50(*, imagenet: bool = False, seed: int = 42, side: int = 224, classes: int = 1000) -> keras.Model:
    """Make keras.applications.ResNet50.

    Args:
        imagenet: with the trained weights, which Keras downloads. Otherwise they are random, and the normalisation's statistics too
            (their start values of 0 and 1 would hide a mistake in converting them).
        seed: of the random weights.
        side: of the pictures, pixels.
        classes: 1000 for `imagenet`.
    """
    if imagenet:
        return keras.applications.ResNet50(weights="imagenet")
    keras.utils.set_random_seed(seed)
    model = keras.applications.ResNet50(
        weights=None,  # type: ignore[arg-type] # documented; annotated as a string by its default
        input_shape=(side, side, 3),
        classes=classes,
    )
    random = np.random.default_rng(seed)
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            size = len(layer.get_weights()[0])
            # The last one of a block is small, as in trained networks, or 16 blocks would add up to infinity.
            gamma = 0.2 if layer.name.endswith("_3_bn") else 1.0
            layer.set_weights(
                [
                    (gamma * random.uniform(0.8, 1.2, size)).astype(np.float32),
                    random.normal(0, 0.1, size).astype(np.float32),
                    random.normal(0, 0.1, size).astype(np.float32),
                    random.uniform(0.8, 1.2, size).astype(np.float32),
                ]
            )
    return model


def resnet50_from_keras(model: keras.Model) -> ResNet50:
    """Give the same network, with the same weights, in PyTorch."""
    result = ResNet50(model.output_shape[-1]).eval()
    state = {}
    for ours, theirs in _resnet50_names():
        kernel, bias = model.get_layer(f"{theirs}_conv").get_weights()
        gamma, beta, mean, variance = model.get_layer(f"{theirs}_bn").get_weights()
        state |= {f"{ours}.conv.weight": kernel.transpose(3, 2, 0, 1), f"{ours}.conv.bias": bias}
        state |= {f"{ours}.bn.weight": gamma, f"{ours}.bn.bias": beta}
        state |= {f"{ours}.bn.running_mean": mean, f"{ours}.bn.running_var": variance}
    kernel, bias = model.get_layer("predictions").get_weights()
    state |= {"predictions.weight": kernel.T, "predictions.bias": bias}
    loaded = result.load_state_dict({key: torch.tensor(value.copy()) for key, value in state.items()}, strict=False)
    left = [key for key in loaded.missing_keys if not key.endswith("num_batches_tracked")]
    if left or loaded.unexpected_keys:
        raise RuntimeError(f"weights left over: {left + loaded.unexpected_keys}")
    return result


def _resnet50_names() -> Iterator[tuple[str, str]]:
    yield "stem", "conv1"
    for stack, (_, blocks, _) in enumerate(RESNET50_STACKS):
        for block in range(blocks):
            ours, theirs = f"stacks.{stack}.{block}", f"conv{stack + 2}_block{block + 1}"
            if block == 0:
                yield f"{ours}.shortcut", f"{theirs}_0"
            for number, name in enumerate(("one", "two", "three"), 1):
                yield f"{ours}.{name}", f"{theirs}_{number}"


def lite0_from_state(state: Mapping[str, torch.Tensor]) -> EfficientNetLite0:
    """Make EfficientNet-Lite0 of the published state dict, whose names are those of the EfficientNet-PyTorch port."""
    model = EfficientNetLite0(len(state["_fc.bias"])).eval()
    parts = {"stem": ("_conv_stem", "_bn0"), "head": ("_conv_head", "_bn1")}
    for index, block in enumerate(model.blocks):
        theirs, number = f"_blocks.{index}.", 0
        if block.expand is not None:
            parts[f"blocks.{index}.expand"] = (f"{theirs}_expand_conv", f"{theirs}_bn0")
            number = 1
        parts[f"blocks.{index}.depthwise"] = (f"{theirs}_depthwise_conv", f"{theirs}_bn1")
        parts[f"blocks.{index}.project"] = (f"{theirs}_project_conv", f"{theirs}_bn2")
        if number == 0 and f"{theirs}_bn0.weight" in state:
            raise RuntimeError(f"block {index} of the weights expands, ours does not")
    ours = {"fc.weight": state["_fc.weight"], "fc.bias": state["_fc.bias"]}
    for name, (conv, norm) in parts.items():
        ours[f"{name}.conv.weight"] = state[f"{conv}.weight"]
        for key in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            ours[f"{name}.bn.{key}"] = state[f"{norm}.{key}"]
    model.load_state_dict(ours)
    return model


def keras_lite0(source: EfficientNetLite0, *, side: int = 224) -> keras.Model:
    """Make the same network, with the same weights, in Keras.

    Args:
        source: in PyTorch.
        side: of the pictures, pixels.
    """
    weights = {key: value.numpy() for key, value in source.state_dict().items()}
    images = keras.Input((side, side, 3), name="images")

    def normed(x: Any, name: str, layer: layers.Layer, *, depthwise: bool = False) -> Any:
        y = layer(x)
        kernel = weights[f"{name}.conv.weight"]
        layer.set_weights([kernel.transpose(2, 3, 0, 1) if depthwise else kernel.transpose(2, 3, 1, 0)])
        norm = layers.BatchNormalization(epsilon=1e-3)
        y = norm(y)
        norm.set_weights([weights[f"{name}.bn.{key}"] for key in ("weight", "bias", "running_mean", "running_var")])
        return y

    def conv(filters: int, kernel: int, stride: int = 1) -> layers.Layer:
        return layers.Conv2D(filters, kernel, stride, "same", use_bias=False)

    x = layers.ReLU(6)(normed(images, "stem", conv(32, 3, 2)))
    number, inputs = 0, 32
    y: Any
    for repeats, kernel, first_stride, expansion, filters in LITE0_BLOCKS:
        for index in range(repeats):
            stride = first_stride if index == 0 else 1
            name, y = f"blocks.{number}", x
            if expansion > 1:
                y = layers.ReLU(6)(normed(y, f"{name}.expand", conv(inputs * expansion, 1)))
            depthwise = layers.DepthwiseConv2D(kernel, stride, "same", use_bias=False)
            y = layers.ReLU(6)(normed(y, f"{name}.depthwise", depthwise, depthwise=True))
            y = normed(y, f"{name}.project", conv(filters, 1))
            x = layers.Add()([x, y]) if stride == 1 and inputs == filters else y
            number, inputs = number + 1, filters
    x = layers.ReLU(6)(normed(x, "head", conv(1280, 1)))
    x = layers.GlobalAveragePooling2D()(x)
    dense = layers.Dense(source.fc.out_features, activation="softmax")
    x = dense(x)
    dense.set_weights([weights["fc.weight"].T, weights["fc.bias"]])
    return keras.Model(images, x)
