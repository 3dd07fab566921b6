"""Makes the fraud models, their ensemble and the committed data: `python -m fraud_features.training`.

`stream` says where transactions and features come from, `fitting` which days are for what.

Needs the dependency group `models`, xgboost and PyTorch; nothing that serves imports this module.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import time
from pathlib import Path
from typing import Any, Final

import numpy as np

from .anomaly import save
from .calibration import fit_thresholds, sigmoid
from .evaluation import average_precision
from .features import FEATURE_NAMES
from .fitting import CALIBRATE, REVIEW, STOP, TEST, TRAIN, figures, fit, policy, rounded, within
from .sample import Sample, load_history, load_sample, save_history, save_sample
from .store import KEEP_DAYS, MemoryStore
from .stream import SCENARIOS, generate, replay, stream_days

__all__ = ["main"]

_log = logging.getLogger("fraud_features.training")

SAMPLE_DAY: Final = 107
"""The held-out day that is committed; any of the test days would do."""


def _blocked(stream: Sample, day: np.ndarray) -> list[str]:
    """Terminals to block on the sample day: at least 3 confirmed frauds in the last known week, and nothing but frauds."""
    known = (day >= SAMPLE_DAY - 14) & (day < SAMPLE_DAY - 7)
    counts: dict[bytes, list[int]] = {}
    for terminal, fraud in zip(stream.columns["terminal_id"][known], stream.labels[known], strict=True):
        counts.setdefault(terminal, [0, 0])[int(fraud)] += 1
    worst = sorted(
        (terminal for terminal, (good, bad) in counts.items() if bad >= 3 and not good),
        key=lambda t: (-counts[t][1], t),
    )
    return [terminal.decode() for terminal in worst[:5]]


_ENSEMBLE: Final = """\
# The fraud ensemble: XGBoost and an auto-encoder, calibrated and blended, then the rules. Written by fraud_features.training.
# What each key means: runtimes/ensemble_server/README.md. What each feature means: transformers/fraud_features/README.md.
schema_version: 1

inputs:
  - name: features
    datatype: FP32
    shape: [-1, {features}]
    columns:
{columns}
  - {{name: amount, datatype: FP64, shape: [-1]}}
  - {{name: terminal_id, datatype: BYTES, shape: [-1]}}

members:
  - name: xgb
    runtime: xgboost_server:XGBoostModel
    file: fraud.ubj
    inputs:
      - {{tensor: features}}
    outputs: {{score: probability}}
  - name: anomaly
    runtime: torch_server:TorchModel
    file: anomaly.pt
    threads: 1
    inputs:
      - {{tensor: features}}
    outputs: {{score: output-0}}
    extra: {{device: cpu}}

combiner:
  name: fraud
  parameters:
    blend:
      bias: {bias:.6f}
      members:
        xgb: {{weight: {weights[0]:.6f}, scale: probability, platt: {{a: {xgb[0]:.6f}, b: {xgb[1]:.6f}}}}}
        anomaly: {{weight: {weights[1]:.6f}, scale: margin, platt: {{a: {anomaly[0]:.6f}, b: {anomaly[1]:.6f}}}}}
    # On the calibration days: 95 % of what is declined is fraud; {by_score} of all transactions go to review for their score, and
    # {by_anomaly} because they are unlike all that was genuine, whatever their score.
    thresholds: {{review: {review}, decline: {decline}}}
    rules:
      - {{rule: blocked_terminal, input: terminal_id, values_file: blocked_terminals.txt, action: decline}}
      - {{rule: amount_limit, input: amount, limit: 2000.0, action: review}}
      - {{rule: velocity_limit, input: features, column: customer_count_1h, limit: 5, action: review}}
      - {{rule: anomaly, member: anomaly, limit: {strange}, action: review, floor: true}}
    contributions: {{member: xgb, top: 3}}
"""


def train(output: Path, seed: int, cache: Path) -> dict[str, Any]:
    """Make everything under `output` that is made; returns the figures that `model/metrics.json` holds."""
    began = time.perf_counter()
    stream, scenario = generate(seed, cache)
    labels, day = stream.labels, stream_days(stream)
    _log.info("stream: %d transactions, %.2f %% fraud (%.0f s)", len(stream), 100 * labels.mean(), _since(began))
    features = replay(stream, MemoryStore(max_ids=50_000))
    _log.info("features: %d x %d (%.0f s)", *features.shape, _since(began))
    fitted = fit(features, labels, day, seed, np.ones(len(stream), np.bool_))
    trees = fitted.booster.num_boosted_rounds()
    _log.info("model: %d trees, and an auto-encoder (%.0f s)", trees, _since(began))

    margins, strange = fitted.outputs(features)
    columns = fitted.calibrated(margins, strange)
    scores, alone = fitted.scores(columns), sigmoid(columns[:, 0])
    calibrating, testing = within(day, CALIBRATE), within(day, TEST)
    truth = labels[testing]
    without = fit_thresholds(
        labels[calibrating], alone[calibrating], strange[calibrating], by_score=sum(REVIEW.values()), by_anomaly=0.0
    )
    declined, reviewed = fitted.thresholds.held(scores[testing], strange[testing])
    only = (strange[testing] > fitted.thresholds.anomaly) & (scores[testing] < fitted.thresholds.review)
    told: dict[str, Any] = {
        "seed": seed,
        "stream": {"transactions": len(stream), "fraud_share": rounded(labels.mean())},
        "trees": trees,
        "train_days": TRAIN,
        "stop_days": STOP,
        "calibration_days": CALIBRATE,
        "test_days": TEST,
        "test": {
            "transactions": len(truth),
            "fraud_share": rounded(truth.mean()),
            "highest_possible_recall_at_1_percent_review": rounded(min(1.0, 0.01 / truth.mean())),
            **figures(truth, scores[testing]),
            **policy(truth, declined, reviewed),
            "anomaly_alone_share": rounded(only.mean()),
            "anomaly_alone_precision": rounded(truth[only].mean()),
            "held_by_kind": {
                name: rounded((declined | reviewed)[scenario[testing] == kind].mean())
                for kind, name in SCENARIOS.items()
            },
        },
        "test_members": {
            "xgb": figures(truth, alone[testing]),
            "xgb_before_calibration": figures(truth, sigmoid(margins[testing])),
            "anomaly": figures(truth, sigmoid(columns[testing, 1])),
        },
        "test_xgb_alone_same_review_budget": policy(truth, *without.held(alone[testing], strange[testing])),
        "baseline_auc_pr": {
            "amount alone": rounded(average_precision(truth, features[testing][:, 0].astype(np.float64))),
            "random": rounded(truth.mean()),
        },
        "thresholds": dataclasses.asdict(fitted.thresholds),
    }

    model, data = output / "model", output / "data"
    model.mkdir(parents=True, exist_ok=True)
    data.mkdir(parents=True, exist_ok=True)
    fitted.booster.save_model(model / "fraud.ubj")
    save(fitted.anomaly, model / "anomaly.pt")
    told["model_bytes"] = {name: (model / name).stat().st_size for name in ("fraud.ubj", "anomaly.pt")}
    (model / "metrics.json").write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    (model / "ensemble.yaml").write_text(
        _ENSEMBLE.format(
            features=len(FEATURE_NAMES),
            columns="\n".join(f"      - {name}" for name in FEATURE_NAMES),
            bias=fitted.blend.bias,
            weights=fitted.blend.weights,
            xgb=fitted.xgb_platt,
            anomaly=fitted.anomaly_platt,
            review=fitted.thresholds.review,
            decline=fitted.thresholds.decline,
            strange=fitted.thresholds.anomaly,
            by_score=f"{REVIEW['by_score']:.1%}",
            by_anomaly=f"{REVIEW['by_anomaly']:.1%}",
        ),
        encoding="utf-8",
    )
    blocked = _blocked(stream, day)
    (model / "blocked_terminals.txt").write_text(
        "# One id a line. Nothing but confirmed frauds in the last week whose outcomes are known.\n"
        + "".join(f"{t}\n" for t in blocked),
        encoding="utf-8",
    )
    sampled = np.flatnonzero(day == SAMPLE_DAY)
    before = np.flatnonzero((day >= SAMPLE_DAY - KEEP_DAYS) & (day < SAMPLE_DAY))
    sample = stream.part(int(sampled[0]), int(sampled[-1]) + 1)
    save_sample(data / "transactions.csv.gz", sample)
    save_history(data / "history.npz", stream.part(int(before[0]), int(before[-1]) + 1))
    _check_warm_up(data, features[sampled])
    _log.info("written: %s (%.0f s)", output, _since(began))
    return told


def _check_warm_up(data: Path, expected: np.ndarray) -> None:
    """Hold the committed files to their promise: a fresh store that has seen the history gives the features of training.

    Raises:
        ValueError: it does not.
    """
    store = MemoryStore()
    replay(load_history(data), store)
    if not np.array_equal(replay(load_sample(data), store), expected, equal_nan=True):
        raise ValueError("the sample's features after a warm-up with the history are not those of the whole stream")


def _since(began: float) -> float:
    return time.perf_counter() - began


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(
        prog="python -m fraud_features.training", description=__doc__.splitlines()[0] if __doc__ else ""
    )
    parser.add_argument("--output", type=Path, required=True, help="folder that gets model/ and data/")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--cache", type=Path, default=Path(".cache"), help="where the generated stream is kept")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    told = train(arguments.output, arguments.seed, arguments.cache)
    print(json.dumps(told["test"], indent=2))


if __name__ == "__main__":
    main()
