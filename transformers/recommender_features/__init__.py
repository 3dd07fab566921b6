"""recommender_features: user ids in, features and candidates for the model, titles and scores out."""

from __future__ import annotations

__all__ = ["__serinus_class__"]

__serinus_class__ = "recommender_features.transformer:RecommenderFeatures"
"""What `--transformer recommender_features` and `--class recommender_features` start; a name: nothing is imported for it."""
