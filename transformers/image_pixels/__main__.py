"""`python -m image_pixels`: the transformer under KServe's own server, with KServe's own flags."""

from __future__ import annotations

import argparse

import kserve
from kserve import model_server

from .transformer import ImagePixels


def main() -> None:
    """Serve until stopped."""
    parser = argparse.ArgumentParser(parents=[model_server.parser], conflict_handler="resolve")
    parser.add_argument("--preset", default=None, help="how the model wants its pixels; default: IMAGE_PIXELS_PRESET")
    args, _ = parser.parse_known_args()
    model = ImagePixels(args.model_name, preset=args.preset)
    model.load()
    kserve.ModelServer().start([model])


if __name__ == "__main__":
    main()
