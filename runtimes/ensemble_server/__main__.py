"""`python -m ensemble_server --model_name fraud --model_dir DIR`: the ensemble under stock KServe."""

from __future__ import annotations

import argparse

from kserve import ModelServer, model_server

from .model import Ensemble


def main() -> None:
    """Load the ensemble and hand it to KServe's own server."""
    parser = argparse.ArgumentParser(parents=[model_server.parser])
    parser.add_argument("--model_dir", required=True, help="folder with ensemble.yaml")
    parser.add_argument("--nthread", type=int, default=0, help="native threads of one predict; 0: the CPU limit")
    parser.add_argument(
        "--allow_implementation",
        action="append",
        default=[],
        help="pattern of classes that ensemble.yaml may name beside the installed runtimes; may be repeated",
    )
    arguments, _ = parser.parse_known_args()
    allowed = [pattern for text in arguments.allow_implementation for pattern in text.split(",") if pattern]
    model = Ensemble(arguments.model_name, arguments.model_dir, arguments.nthread, allowed)
    model.load()
    ModelServer().start([model])


if __name__ == "__main__":
    main()
