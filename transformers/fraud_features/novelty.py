"""What the ensemble catches of kinds of fraud that nobody has seen: `python -m fraud_features.novelty` (`make novelty`).

For each kind (or kinds) held out: its rows are in no training, stopping or calibration day, and none of them is ever confirmed, so that
no risk feature knows of it either. Then both members, blend and thresholds are fitted as `training` fits them, and the test
days tell how much of the unseen kind is declined or reviewed: by XGBoost alone with the whole review budget, and by the ensemble
with the same budget, a part of which is the anomaly rule's. Takes ~3 minutes; needs what `training` needs.
"""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path
from typing import Any, Final

import numpy as np

from .calibration import fit_thresholds, sigmoid
from .evaluation import average_precision
from .fitting import CALIBRATE, REVIEW, TEST, Ensemble, fit, rounded, within
from .sample import Sample
from .store import MemoryStore
from .stream import SCENARIOS, generate, replay, stream_days

__all__ = ["main", "measure"]

_log = logging.getLogger("fraud_features.novelty")

HELD_OUT: Final = ((), (1,), (2,), (3,), (4,), (3, 4))
"""Scenarios of the simulator; the last are all frauds that have another place or amount than the owner's: a new way to steal."""


def measure(seed: int, cache: Path) -> list[dict[str, Any]]:
    """One entry for each of `HELD_OUT`."""
    stream, scenario = generate(seed, cache)
    day = stream_days(stream)
    found = []
    for kinds in HELD_OUT:
        unseen = np.isin(scenario, kinds)
        confirmed = Sample(stream.columns, np.where(unseen, 0, stream.labels).astype(np.int8))
        features = replay(confirmed, MemoryStore(max_ids=50_000))
        fitted = fit(features, stream.labels, day, seed, ~unseen)
        entry = _compare(fitted, features, stream.labels, scenario, day, kinds)
        _log.info("%s", json.dumps(entry))
        found.append(entry)
    return found


def _compare(
    fitted: Ensemble,
    features: np.ndarray,
    labels: np.ndarray,
    scenario: np.ndarray,
    day: np.ndarray,
    kinds: tuple[int, ...],
) -> dict[str, Any]:
    known, testing = within(day, CALIBRATE) & ~np.isin(scenario, kinds), within(day, TEST)
    truth, kind = labels[testing], scenario[testing]

    margins, strange = fitted.outputs(features)
    columns = fitted.calibrated(margins, strange)
    alone, together = sigmoid(columns[:, 0]), fitted.scores(columns)
    budget = sum(REVIEW.values())
    xgboost = fit_thresholds(labels[known], alone[known], strange[known], by_score=budget, by_anomaly=0.0)
    policies = {"xgboost_alone": (alone, xgboost), "ensemble": (together, fitted.thresholds)}
    entry: dict[str, Any] = {"held_out": list(kinds), "unseen_frauds": int(np.isin(kind, kinds).sum())}
    for name, (scores, thresholds) in policies.items():
        declined, reviewed = thresholds.held(scores[testing], strange[testing])
        held = declined | reviewed
        entry[name] = {
            "auc_pr": rounded(average_precision(truth, scores[testing])),
            "unseen_held": rounded(held[np.isin(kind, kinds)].mean()) if kinds else None,
            "held_by_kind": {SCENARIOS[k]: rounded(held[kind == k].mean()) for k in SCENARIOS},
            "frauds_held": rounded(held[truth == 1].mean()),
            "genuine_held": rounded(held[truth == 0].mean()),
        }
    return entry


def main() -> None:
    """Parse the command line, measure, write and print."""
    parser = argparse.ArgumentParser(
        prog="python -m fraud_features.novelty", description=__doc__.splitlines()[0] if __doc__ else ""
    )
    parser.add_argument("--output", type=Path, required=True, help="folder that gets novelty.json")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--cache", type=Path, default=Path(".cache"), help="where the generated stream is kept")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    found = measure(arguments.seed, arguments.cache)
    (arguments.output / "novelty.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
