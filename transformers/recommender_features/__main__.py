"""`python -m recommender_features`: the transformer under KServe's own server, with KServe's own flags."""

from __future__ import annotations

import argparse

import kserve
from kserve import model_server

from .transformer import RecommenderFeatures


def main() -> None:
    """Serve until stopped."""
    parser = argparse.ArgumentParser(parents=[model_server.parser], conflict_handler="resolve")
    parser.add_argument(
        "--catalogue_dir", default=None, help="folder of catalogue.npz and titles.json; default: CATALOGUE_DIR"
    )
    args, _ = parser.parse_known_args()
    model = RecommenderFeatures(args.model_name, catalogue_dir=args.catalogue_dir)
    model.load()
    kserve.ModelServer().start([model])


if __name__ == "__main__":
    main()
