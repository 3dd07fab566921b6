"""`python -m fraud_features`: the transformer under KServe's own server, with KServe's own flags."""

from __future__ import annotations

import argparse

import kserve
from kserve import model_server

from .transformer import FraudFeatures


def main() -> None:
    """Serve until stopped."""
    parser = argparse.ArgumentParser(parents=[model_server.parser], conflict_handler="resolve")
    parser.add_argument(
        "--feature_store_url", default=None, help="redis://...; default: FEATURE_STORE_URL, or in-process"
    )
    args, _ = parser.parse_known_args()
    model = FraudFeatures(args.model_name, feature_store_url=args.feature_store_url)
    model.load()
    kserve.ModelServer().start([model])


if __name__ == "__main__":
    main()
