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
    arguments, _ = parser.parse_known_args()
    model = Ensemble(arguments.model_name, arguments.model_dir, arguments.nthread)
    model.load()
    ModelServer().start([model])


if __name__ == "__main__":
    main()
