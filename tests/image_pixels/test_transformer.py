"""From a file's bytes to pixels: every kind of picture, and what is no picture."""

from __future__ import annotations

import dataclasses
import struct
import warnings
import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from image_pixels.pixels import BadImage, decode, normalise_into, shape_of
from image_pixels.recipe import PRESETS, recipe_of
from vision_support import gradient, picture, saved

RECIPE = dataclasses.replace(PRESETS["torchvision"], resize=40, crop=32)


def reference(image: Image.Image, resize: int, crop: int, resample: Image.Resampling) -> np.ndarray:
    """Resize the whole picture, then crop: what torchvision's Resize and CenterCrop do with Pillow."""
    width, height = image.size
    short = min(width, height)
    size = (
        resize if width == short else int(resize * width / height),
        resize if height == short else int(resize * height / width),
    )
    left, top = round((size[0] - crop) / 2.0), round((size[1] - crop) / 2.0)
    return np.asarray(image.resize(size, resample).crop((left, top, left + crop, top + crop)))


@pytest.mark.parametrize("size", [(300, 200), (200, 300), (41, 40), (40, 40), (640, 97), (20, 15)], ids=str)
@pytest.mark.parametrize("filter", ["bilinear", "bicubic"])
def test_one_step_gives_the_pixels_of_resizing_and_then_cropping(size: tuple[int, int], filter: str):
    image = gradient(*size)
    wanted = reference(image, 40, 32, Image.Resampling[filter.upper()])
    found = decode(saved(image), dataclasses.replace(RECIPE, filter=filter))
    assert found.shape == (32, 32, 3)
    assert np.abs(found.astype(int) - wanted).max() <= 1


@pytest.mark.slow
def test_a_large_jpeg_decoded_smaller_looks_the_same():
    image = Image.fromarray(np.asarray(gradient(1600, 1200)) // 4 * 2)
    content = saved(image, "JPEG", quality=95)
    wanted = reference(Image.open(BytesIO(content)).convert("RGB"), 40, 32, Image.Resampling.BILINEAR)
    difference = np.abs(decode(content, RECIPE).astype(int) - wanted)
    assert difference.mean() < 2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int):
    upright = gradient(64, 48)
    # What the camera stored is the inverse of what the tag asks a viewer to do.
    stored = {
        1: [],
        2: [Image.Transpose.FLIP_LEFT_RIGHT],
        3: [Image.Transpose.ROTATE_180],
        4: [Image.Transpose.FLIP_TOP_BOTTOM],
        5: [Image.Transpose.TRANSPOSE],
        6: [Image.Transpose.ROTATE_90],
        7: [Image.Transpose.TRANSVERSE],
        8: [Image.Transpose.ROTATE_270],
    }[orientation]
    image = upright
    for step in stored:
        image = image.transpose(step)
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = decode(saved(image, "PNG", exif=exif.tobytes()), RECIPE)
    assert np.abs(found.astype(int) - decode(saved(upright), RECIPE)).max() <= 1


KINDS = {
    "grey": (Image.new("L", (50, 50), 200), "PNG", (200, 200, 200)),
    "black and white": (Image.new("1", (50, 50), 1), "PNG", (255, 255, 255)),
    "16-bit grey": (Image.fromarray(np.full((50, 50), 200 * 257, np.uint16)), "PNG", (200, 200, 200)),
    "palette": (Image.new("RGB", (50, 50), (10, 200, 30)).quantize(4), "PNG", (10, 200, 30)),
    "cmyk": (Image.new("CMYK", (50, 50), (0, 255, 255, 0)), "JPEG", (255, 0, 0)),
    "transparent": (Image.new("RGBA", (50, 50), (255, 0, 0, 0)), "PNG", (255, 255, 255)),
    "half transparent": (Image.new("RGBA", (50, 50), (255, 0, 0, 128)), "PNG", (255, 127, 127)),
    "grey and alpha": (Image.new("LA", (50, 50), (0, 0)), "PNG", (255, 255, 255)),
    "webp": (Image.new("RGB", (50, 50), (0, 0, 255)), "WEBP", (0, 0, 255)),
    "gif": (Image.new("RGB", (50, 50), (0, 255, 0)), "GIF", (0, 255, 0)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_its_mode_a_picture_becomes_what_a_viewer_shows(kind: str):
    image, file_type, colour = KINDS[kind]
    found = decode(saved(image, file_type), RECIPE)
    assert found.dtype == np.uint8
    assert np.abs(found.astype(int) - colour).max() <= 3


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP"])
def test_of_an_animation_the_first_frame_is_taken(format: str):
    frames = [Image.new("RGB", (50, 50), colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    found = decode(saved(frames[0], format, save_all=True, append_images=frames[1:], duration=100), RECIPE)
    assert np.abs(found.astype(int) - (255, 0, 0)).max() <= 3


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


BAD = {
    "nothing": (b"", "no bytes"),
    "text": (b"hello, picture", "is no JPEG"),
    "a PDF": (b"%PDF-1.7", "is no JPEG"),
    "a TIFF, which is not offered": (picture(format="TIFF"), "is no JPEG"),
    "a BMP, which is not offered": (picture(format="BMP"), "is no JPEG"),
    "half a JPEG": (saved(gradient(300, 200), "JPEG")[:5000], "cannot be decoded"),
    "half a PNG": (saved(gradient(300, 200))[:5000], "cannot be decoded"),
    "a JPEG's first bytes": (b"\xff\xd8\xff\xe0", "is no JPEG|cannot be read"),
    "60 million pixels": (bomb(10_000, 6_000), "60,000,000; the limit is 50,000,000"),
    "100 million pixels": (bomb(10_000, 10_000), "pixels"),
    "4 billion pixels": (bomb(65_000, 65_000), "too many pixels"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_picture_is_refused_with_the_reason(name: str):
    content, reason = BAD[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(BadImage, match=reason):
            decode(content, RECIPE)


def test_no_prefix_of_a_picture_raises_anything_else():
    for file_type in ("JPEG", "PNG", "GIF", "WEBP"):
        content = saved(gradient(40, 30), file_type)
        for end in range(0, len(content), 7):
            try:
                decode(content[:end], RECIPE)
            except BadImage:
                pass


def test_flipped_bytes_raise_nothing_else():
    random = np.random.default_rng(1)
    for file_type in ("JPEG", "PNG", "GIF", "WEBP"):
        content = saved(gradient(40, 30), file_type)
        for _ in range(150):
            broken = bytearray(content)
            for place in random.integers(0, len(broken), 4):
                broken[place] = random.integers(0, 256)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Pillow warns of odd metadata
                try:
                    decode(bytes(broken), RECIPE)
                except BadImage:
                    pass


@pytest.mark.parametrize("size", [(1, 4000), (4000, 1), (1, 1)], ids=str)
def test_the_thinnest_picture_costs_no_more_than_any_other(size: tuple[int, int]):
    assert decode(saved(Image.new("RGB", size, (9, 9, 9))), PRESETS["torchvision"]).shape == (224, 224, 3)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_normalises_as_its_family_does(preset: str):
    recipe = dataclasses.replace(PRESETS[preset], crop=4)
    pixels = np.random.default_rng(0).integers(0, 256, (4, 4, 3), np.uint8)
    target = np.empty(shape_of(recipe), np.float32)
    normalise_into(target, pixels, recipe)
    x = pixels.astype(np.float64)
    wanted = {
        "keras-resnet50": x[:, :, ::-1] - [103.939, 116.779, 123.68],
        "torchvision": ((x / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]).transpose(2, 0, 1),
        "efficientnet-lite0": (x - 127) / 128,
    }[preset]
    np.testing.assert_allclose(target, wanted, rtol=0, atol=1e-4)


CHANGED = {
    "IMAGE_PIXELS_PRESET": "torchvision",
    "IMAGE_PIXELS_LAYOUT": "NHWC",
    "IMAGE_PIXELS_MEAN": "1,2,3",
    "HOME": "/",
}


def test_a_recipe_is_a_preset_and_what_the_environment_changes():
    recipe = recipe_of(
        None,
        {
            "IMAGE_PIXELS_PRESET": "torchvision",
            "IMAGE_PIXELS_LAYOUT": "NHWC",
            "IMAGE_PIXELS_MEAN": "1,2,3",
            "HOME": "/",
        },
    )
    assert recipe == dataclasses.replace(PRESETS["torchvision"], layout="NHWC", mean=(1.0, 2.0, 3.0))
    assert recipe_of("efficientnet-lite0", {"IMAGE_PIXELS_PRESET": "torchvision"}) == PRESETS["efficientnet-lite0"]


def test_a_service_called_image_pixels_changes_no_recipe():
    links = {
        "IMAGE_PIXELS_SERVICE_HOST": "10.96.0.9",
        "IMAGE_PIXELS_SERVICE_PORT_HTTP": "80",
        "IMAGE_PIXELS_PORT": "tcp://10.96.0.9:80",
        "IMAGE_PIXELS_PORT_80_TCP_ADDR": "10.96.0.9",
    }
    assert recipe_of(None, links) == PRESETS["keras-resnet50"]


def test_all_that_is_wrong_with_a_recipe_is_told_at_once():
    environment = {
        "IMAGE_PIXELS_PRESET": "vgg",
        "IMAGE_PIXELS_FILTER": "nearest",
        "IMAGE_PIXELS_TOP_K": "0",
        "IMAGE_PIXELS_MEAN": "1,2",
        "IMAGE_PIXELS_SIZE": "3",
    }
    with pytest.raises(ValueError, match=r"PRESET.*FILTER.*TOP_K.*MEAN.*SIZE") as caught:
        recipe_of(None, environment)
    assert "keras-resnet50" in str(caught.value)
    with pytest.raises(ValueError, match="crop is 400"):
        recipe_of(None, {"IMAGE_PIXELS_CROP": "400"})
