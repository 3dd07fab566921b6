"""image_pixels: JPEG and PNG bytes in, the pixel tensor of an image classifier out. See README.md beside this file."""

from __future__ import annotations

__all__ = ["__serinus_class__"]

__serinus_class__ = "image_pixels.transformer:ImagePixels"
"""What `--transformer image_pixels` and `--class image_pixels` start; a name, so that nothing is imported for it."""
