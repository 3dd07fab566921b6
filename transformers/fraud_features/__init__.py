"""fraud_features: raw card transactions in, the feature tensor of the fraud model out. See README.md beside this file."""

from __future__ import annotations

__all__ = ["__serinus_class__"]

__serinus_class__ = "fraud_features.transformer:FraudFeatures"
"""What `--transformer fraud_features` and `--class fraud_features` start; a name, so that nothing is imported for it."""
