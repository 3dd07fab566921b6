"""From the bytes of one picture to normalised pixels: Pillow and NumPy, no server.

Theory of operation. Only a header is read before the size is checked, so a small file that claims billions of pixels is refused
before anything is allocated for it. A JPEG that is several times too large is decoded at a half, a quarter or an eighth (the
decoder leaves out frequencies; at least twice the wanted size is kept, which the filter then reduces). Resizing and cropping are
one step that computes only the square that is kept: a picture of 1 x 50,000,000 costs no more than any other.

Whatever a picture is, it becomes RGB of 8 bits as a viewer would show it: turned upright (EXIF), the first frame of an
animation, transparency over white, CMYK and palettes converted, 16 bits reduced to the upper 8. Colour profiles are not applied.
"""

from __future__ import annotations

import struct
import zlib
from io import BytesIO

import numpy as np

try:
    from PIL import GifImagePlugin, Image, ImageOps, JpegImagePlugin, PngImagePlugin, WebPImagePlugin
except ImportError as error:  # pragma: no cover # the extra brings it
    raise ImportError("image_pixels needs Pillow: pip install 'serinus[image-pixels]'") from error

from .recipe import Recipe

__all__ = ["FORMATS", "BadImage", "decode", "normalise_into", "shape_of"]

FORMATS = ("JPEG", "PNG", "WEBP", "GIF")
"""Pillow's names of what is read. No other parser is run on a client's bytes."""
_PLUGINS = (JpegImagePlugin, PngImagePlugin, WebPImagePlugin, GifImagePlugin)
"""Imported because a format that is named must have been registered."""

_BROKEN = (OSError, SyntaxError, ValueError, EOFError, KeyError, IndexError, TypeError, OverflowError)
"""What Pillow raises for broken files, beside the two below; its plugins have no common class."""
_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_DRAFT_RESERVE = 2
"""A JPEG is decoded smaller only down to this many times the wanted size, so that the filter decides on the pixels."""


class BadImage(ValueError):
    """These bytes are no picture that can be taken; the message says why, for the client."""


def shape_of(recipe: Recipe) -> tuple[int, int, int]:
    """Shape of one picture's pixels: [H, W, 3] or [3, H, W]."""
    side = recipe.crop
    return (side, side, 3) if recipe.layout == "NHWC" else (3, side, side)


def decode(content: bytes, recipe: Recipe) -> np.ndarray:
    """Read a picture and cut out its middle.

    Args:
        content: a whole file in one of `FORMATS`.
        recipe: sizes, filter and limit.

    Returns:
        uint8 [crop, crop, 3], RGB.

    Raises:
        BadImage: empty, not such a file, truncated, or larger than `max_pixels`.
    """
    if not content:
        raise BadImage("no bytes; a JPEG, PNG, WebP or GIF file was expected")
    try:
        image = Image.open(BytesIO(content), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadImage(f"too many pixels; the limit is {recipe.max_pixels:,}") from error
    except Image.UnidentifiedImageError:
        raise BadImage(f"{content[:8]!r}... is no JPEG, PNG, WebP or GIF file") from None
    except (*_BROKEN, struct.error, zlib.error) as error:
        raise BadImage(f"cannot be read: {_said(error)}") from error
    width, height = image.size
    if width * height > recipe.max_pixels:
        raise BadImage(f"{width} x {height} pixels are {width * height:,}; the limit is {recipe.max_pixels:,}")
    if width < 1 or height < 1:
        raise BadImage(f"{width} x {height} pixels are none")
    try:
        with image:
            if image.format in {"JPEG", "MPO"}:  # what many phones write is several JPEGs in one, "MPO"
                # Pillow takes the largest reduction that leaves both sides at least this long.
                least = recipe.resize * _DRAFT_RESERVE
                image.draft(None, (least, least))
            image.load()
            return _square(_rgb(_upright(image)), recipe)
    except Image.DecompressionBombError as error:
        raise BadImage(f"too many pixels; the limit is {recipe.max_pixels:,}") from error
    except (*_BROKEN, struct.error, zlib.error) as error:
        raise BadImage(f"cannot be decoded: {_said(error)}") from error


def normalise_into(target: np.ndarray, pixels: np.ndarray, recipe: Recipe) -> None:
    """Write (pixels - mean) * scale.

    Args:
        target: float32, `shape_of(recipe)`; one row of the batch.
        pixels: uint8 [H, W, 3], RGB.
        recipe: channels, mean, scale and layout.
    """
    if recipe.channels == "BGR":
        pixels = pixels[:, :, ::-1]
    view = target if recipe.layout == "NHWC" else target.transpose(1, 2, 0)
    np.subtract(pixels, np.array(recipe.mean, np.float32), out=view, dtype=np.float32)
    if recipe.scale != (1.0, 1.0, 1.0):
        view *= np.array(recipe.scale, np.float32)


def _said(error: BaseException) -> str:
    text = str(error).splitlines()[0] if str(error) else "the file is broken"
    return text[:120]


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except (*_BROKEN, struct.error, ZeroDivisionError):
        return image  # Broken metadata does not spoil the pixels.


def _rgb(image: Image.Image) -> Image.Image:
    """Convert whatever mode Pillow found to RGB of 8 bits."""
    mode = image.mode
    if mode == "RGB" and "transparency" not in image.info:
        return image
    if mode.startswith("I") or mode == "F":
        # Pillow's own conversion would clip 16-bit grey at 255 instead of scaling it.
        grey = np.asarray(image).astype(np.float64) / 257 if mode != "F" else np.asarray(image)
        return Image.fromarray(np.clip(grey + 0.5, 0, 255).astype(np.uint8)).convert("RGB")
    if mode in {"RGBA", "LA", "PA", "RGBa", "La"} or "transparency" in image.info:
        over = image.convert("RGBA")
        white = Image.new("RGBA", over.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, over).convert("RGB")
    return image.convert("RGB")


def _square(image: Image.Image, recipe: Recipe) -> np.ndarray:
    """Resize so that the shorter side is `resize`, and keep the middle `crop` x `crop`, in one step.

    The sizes are rounded as torchvision's Resize and CenterCrop round them.
    """
    width, height = image.size
    short = min(width, height)
    new_width = recipe.resize if width == short else int(recipe.resize * width / height)
    new_height = recipe.resize if height == short else int(recipe.resize * height / width)
    left = round((new_width - recipe.crop) / 2.0)
    top = round((new_height - recipe.crop) / 2.0)
    x, y = width / new_width, height / new_height
    box = (left * x, top * y, min(width, (left + recipe.crop) * x), min(height, (top + recipe.crop) * y))
    return np.asarray(image.resize((recipe.crop, recipe.crop), _FILTERS[recipe.filter], box=box))
