"""How a model wants its pixels, as data: the sizes, the filter, the normalisation and the layout of each family.

A recipe is a preset and what the environment changes of it, IMAGE_PIXELS_<FIELD> in capitals: IMAGE_PIXELS_LAYOUT=NCHW.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["PREFIX", "PRESETS", "Recipe", "recipe_of"]

PREFIX = "IMAGE_PIXELS_"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything between the bytes of a picture and the model's input, and what its answer is called."""

    preset: str
    resize: int
    """The shorter side after resizing, pixels."""
    crop: int
    """Side of the square that is cut out of the middle, pixels."""
    filter: str
    """bilinear or bicubic, both over the whole support of the pixels that fall together ("antialias")."""
    mean: tuple[float, float, float]
    """Subtracted from values of 0 to 255, in the order of `channels`."""
    scale: tuple[float, float, float]
    """Multiplied after that."""
    channels: str = "RGB"
    """RGB or BGR."""
    layout: str = "NHWC"
    """NHWC or NCHW."""
    input: str = "images"
    """Name of the model's input."""
    output: str = "probabilities"
    """Name of the model's output, one value per class."""
    top_k: int = 5
    """Classes in an answer, unless the request says how many."""
    max_pixels: int = 50_000_000
    """Largest picture, width x height, refused before it is decoded; a 50-megapixel camera's, 150 MB as RGB."""
    max_images: int = 64
    """Most pictures in a request: 64 of 224 x 224 are 39 MB of pixels."""
    threads: int = 0
    """Pictures decoded at a time. 0: as many as there are CPUs."""


_TORCHVISION_MEAN = (123.675, 116.28, 103.53)
_TORCHVISION_SCALE = (1 / 58.395, 1 / 57.12, 1 / 57.375)

PRESETS: dict[str, Recipe] = {
    # Keras, applications/imagenet_utils.py, mode "caffe"; resize and crop as the ResNet paper's authors test (He et al. 2015, 3.4).
    "keras-resnet50": Recipe(
        preset="keras-resnet50",
        resize=256,
        crop=224,
        filter="bilinear",
        mean=(103.939, 116.779, 123.68),
        scale=(1.0, 1.0, 1.0),
        channels="BGR",
    ),
    # torchvision, transforms/_presets.py, ImageClassification: mean and deviation of 0 to 1, times 255.
    "torchvision": Recipe(
        preset="torchvision",
        resize=256,
        crop=224,
        filter="bilinear",
        mean=_TORCHVISION_MEAN,
        scale=_TORCHVISION_SCALE,
        layout="NCHW",
    ),
    # TPU models, efficientnet/lite/efficientnet_lite_builder.py: (x - 127) / 128; preprocessing.py: the middle 224 / 256, bicubic.
    "efficientnet-lite0": Recipe(
        preset="efficientnet-lite0",
        resize=256,
        crop=224,
        filter="bicubic",
        mean=(127.0, 127.0, 127.0),
        scale=(1 / 128, 1 / 128, 1 / 128),
    ),
}

_CHOICES = {"filter": ("bilinear", "bicubic"), "channels": ("RGB", "BGR"), "layout": ("NHWC", "NCHW")}
_TEXTS = ("input", "output")
_NUMBERS = {"resize": 1, "crop": 1, "top_k": 1, "max_pixels": 1, "max_images": 1, "threads": 0}
_TRIPLES = ("mean", "scale")


_SERVICE_LINK = re.compile(r"_SERVICE_(HOST|PORT(_.*)?)$|_PORT(_\d+_(TCP|UDP|SCTP)(_.*)?)?$")
"""What the kubelet sets for a Service called image-pixels (Kubernetes, "Accessing the Service"); none of these is a field."""


def recipe_of(preset: str | None, environment: Mapping[str, str]) -> Recipe:
    """Read the recipe that a preset and the environment make.

    Args:
        preset: its name; None: IMAGE_PIXELS_PRESET, or else "keras-resnet50".
        environment: variables that begin with IMAGE_PIXELS_ are read.

    Raises:
        ValueError: with every variable that is unknown or wrong, and what is accepted.
    """
    given = {
        key[len(PREFIX) :].lower(): value
        for key, value in environment.items()
        if key.startswith(PREFIX) and not _SERVICE_LINK.search(key)
    }
    name = preset or given.pop("preset", "") or "keras-resnet50"
    given.pop("preset", None)
    problems: list[str] = []
    base = PRESETS.get(name)
    if base is None:
        problems.append(f"{PREFIX}PRESET is {name!r}; accepted are {', '.join(PRESETS)}")
        base = PRESETS["keras-resnet50"]
    changes: dict[str, Any] = {}
    for key, text in given.items():
        try:
            changes[key] = _value(key, text)
        except ValueError as error:
            problems.append(f"{PREFIX}{key.upper()} is {text!r}; {error}")
    recipe = dataclasses.replace(base, **changes) if not problems else base
    if recipe.crop > recipe.resize:
        problems.append(
            f"crop is {recipe.crop}, larger than resize, {recipe.resize}: the square lies in the resized picture"
        )
    if problems:
        raise ValueError("; ".join(problems))
    return recipe


def _value(key: str, text: str) -> Any:
    if key in _CHOICES:
        if text not in _CHOICES[key]:
            raise ValueError(f"accepted are {', '.join(_CHOICES[key])}")
        return text
    if key in _TEXTS:
        if not text:
            raise ValueError("a name was expected")
        return text
    if key in _NUMBERS:
        if not text.isdecimal() or int(text) < _NUMBERS[key]:
            raise ValueError(f"a whole number of at least {_NUMBERS[key]} was expected")
        return int(text)
    if key in _TRIPLES:
        try:
            first, second, third = (float(part) for part in text.split(","))
        except ValueError:
            raise ValueError("three numbers with commas between them were expected, one per channel") from None
        return first, second, third
    known = ("preset", *_CHOICES, *_TEXTS, *_NUMBERS, *_TRIPLES)
    raise ValueError(f"no such setting; there are {', '.join(PREFIX + name.upper() for name in sorted(known))}")
