"""Makes the fraud model, its calibration and the committed data: `python -m fraud_features.training`.

Days, in order: history that fills the windows; training; the delay until outcomes are known; a slice that stops the boosting
early; a slice that calibrates; the delay again; the test days. So nothing is judged by days that it has seen, and
nothing is trained on outcomes that could not have been known. Features come from the code that serves (`schema`, `store`,
`features`); the stream is synccfd's: the Fraud Detection Handbook's simulator with places.

Needs the dependency group `models` and xgboost; nothing else in this package imports this module.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import time
import warnings
from pathlib import Path
from typing import Any, Final

import numpy as np

from .evaluation import average_precision, recall_at_review_rate
from .features import FEATURE_NAMES, batch_of, compute
from .sample import Sample, load_history, load_sample, raw_tensors, save_history, save_sample
from .schema import Labels, parse
from .store import KEEP_DAYS, MemoryStore

__all__ = ["main"]

_log = logging.getLogger("fraud_features.training")

START: Final = "2025-01-01"
"""The stream's first day: in the past, so that a replay is not refused as lying in the future."""
CUSTOMERS: Final = 1000
TERMINALS: Final = 2000
DAYS: Final = 110
TRAIN: Final = (37, 75)
STOP: Final = (82, 87)
CALIBRATE: Final = (87, 92)
TEST: Final = (99, 110)
SAMPLE_DAY: Final = 107
"""The held-out day that is committed; any of the test days would do."""

_PARAMETERS: Final[dict[str, Any]] = {
    "objective": "binary:logistic",
    "eval_metric": "aucpr",
    "tree_method": "hist",
    "max_depth": 6,
    "eta": 0.1,
    "min_child_weight": 5,
    "subsample": 0.8,
    "colsample_bytree": 0.6,
    "lambda": 2.0,
    "nthread": 2,
}
_ROUNDS: Final = 300
_PATIENCE: Final = 30


def generate(seed: int, cache: Path) -> Sample:
    """Make the stream, or read it from the cache: 216 447 transactions in ~1 minute."""
    path = cache / f"synccfd-{CUSTOMERS}-{TERMINALS}-{DAYS}-{seed}.npz"
    if path.exists():
        with np.load(path, allow_pickle=False) as file:
            columns = {
                name: file[name].astype(object) if file[name].dtype.kind == "S" else file[name] for name in file.files
            }
        return Sample(columns, columns.pop("fraud"))
    try:
        from synccfd import DatasetGenerator  # type: ignore[import-not-found] # in an environment of its own (group `models`)
    except ImportError as error:
        raise SystemExit("the simulator is missing: install the dependency group `models` (synccfd)") from error
    generator = DatasetGenerator(
        n_customers=CUSTOMERS, n_terminals=TERMINALS, nb_days=DAYS, start_date=START, random_state=seed
    )
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")  # of pandas, about the simulator's own code
        frame = generator.generate()[2].sort_values(["TX_DATETIME", "TRANSACTION_ID"], kind="stable")
    columns = {
        "transaction_id": np.array([b"%d" % v for v in frame["TRANSACTION_ID"]]),
        "datetime": frame["TX_DATETIME"].to_numpy().astype("datetime64[s]").astype(np.int64),
        "customer_id": np.array([b"C%04d" % v for v in frame["CUSTOMER_ID"]]),
        "terminal_id": np.array([b"T%04d" % v for v in frame["TERMINAL_ID"]]),
        "amount": np.round(frame["TX_AMOUNT"].to_numpy(np.float64), 2),
        "type": np.array([v.encode() for v in frame["TX_TYPE"]]),
        "shipping_lat": frame["TX_SHIPP_LAT"].to_numpy(np.float64),
        "shipping_long": frame["TX_SHIPP_LONG"].to_numpy(np.float64),
        "billing_lat": frame["TX_BILL_LAT"].to_numpy(np.float64),
        "billing_long": frame["TX_BILL_LONG"].to_numpy(np.float64),
        "terminal_lat": frame["TX_TERM_LAT"].to_numpy(np.float64),
        "terminal_long": frame["TX_TERM_LONG"].to_numpy(np.float64),
    }
    labels = frame["TX_FRAUD"].to_numpy(np.int8)
    cache.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, fraud=labels, **columns)
    return Sample({k: v.astype(object) if v.dtype.kind == "S" else v for k, v in columns.items()}, labels)


def replay(stream: Sample, store: MemoryStore, rows: int = 4096) -> np.ndarray:
    """Features of a whole stream, as a service would have computed them; float32 [n, F]."""
    parts = []
    now_s = float(stream.columns["datetime"][-1])
    for part in stream.batches(rows):
        transactions = parse(raw_tensors(part), now_s)
        batch = batch_of(transactions)
        parts.append(compute(transactions, batch, store.update_now(batch)))
        frauds = part.labels.tolist()
        store.record_labels_now(
            Labels(transactions.ids, transactions.seconds, transactions.customers, transactions.terminals, frauds)
        )
    return np.concatenate(parts)


def platt(margins: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """Fit `p = 1 / (1 + exp(-(a * margin + b)))` by Newton's method, with Platt's smoothed targets (Platt 1999, 2.2)."""
    positives = float(labels.sum())
    targets = np.where(labels == 1, (positives + 1) / (positives + 2), 1 / (len(labels) - positives + 2))
    design = np.stack([margins.astype(np.float64), np.ones(len(margins))], 1)
    weights = np.array([1.0, 0.0])
    for _ in range(100):
        p = 1 / (1 + np.exp(-design @ weights))
        gradient = design.T @ (p - targets)
        hessian = (design * (p * (1 - p))[:, None]).T @ design + 1e-9 * np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        weights -= step
        if np.abs(step).max() < 1e-10:
            break
    return float(weights[0]), float(weights[1])


def _thresholds(labels: np.ndarray, scores: np.ndarray) -> tuple[float, float]:
    """Decline where at least 95 % of what is above is fraud; review the next 2 % of transactions."""
    order = np.argsort(-scores, kind="stable")
    precision = np.cumsum(labels[order]) / np.arange(1, len(scores) + 1)
    declined = int(np.flatnonzero(precision >= 0.95)[-1]) + 1
    reviewed = min(len(scores), declined + round(0.02 * len(scores))) - 1
    return round(float(scores[order[reviewed]]), 4), round(float(scores[order[declined - 1]]), 4)


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
# The fraud ensemble: one XGBoost member, calibrated, then the rules. Written by fraud_features.training.
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

combiner:
  name: fraud
  parameters:
    blend:
      bias: 0.0
      members:
        xgb: {{weight: 1.0, scale: probability, platt: {{a: {a:.6f}, b: {b:.6f}}}}}
    # On the calibration days: 95 % of what is declined is fraud, and 2 % of all transactions go to review.
    thresholds: {{review: {review}, decline: {decline}}}
    rules:
      - {{rule: blocked_terminal, input: terminal_id, values_file: blocked_terminals.txt, action: decline}}
      - {{rule: amount_limit, input: amount, limit: 2000.0, action: review}}
      - {{rule: velocity_limit, input: features, column: customer_count_1h, limit: 5, action: review}}
    contributions: {{member: xgb, top: 3}}
"""


def train(output: Path, seed: int, cache: Path) -> dict[str, Any]:
    """Make everything under `output` that is made; returns the figures that `model/metrics.json` holds."""
    try:
        import xgboost
    except ImportError as error:
        raise SystemExit("XGBoost is missing: pip install 'serinus[xgboost_server]'") from error
    began = time.perf_counter()
    stream = generate(seed, cache)
    day = (stream.columns["datetime"] - stream.columns["datetime"][0] // 86400 * 86400) // 86400
    _log.info("stream: %d transactions, %.2f %% fraud (%.0f s)", len(stream), 100 * stream.labels.mean(), _since(began))
    features = replay(stream, MemoryStore(max_ids=50_000))
    _log.info("features: %d x %d (%.0f s)", *features.shape, _since(began))

    def days(span: tuple[int, int]) -> np.ndarray:
        return (day >= span[0]) & (day < span[1])

    def matrix(rows: np.ndarray) -> Any:
        return xgboost.DMatrix(features[rows], stream.labels[rows], feature_names=list(FEATURE_NAMES))

    booster = xgboost.train(
        {**_PARAMETERS, "seed": seed},
        matrix(days(TRAIN)),
        _ROUNDS,
        evals=[(matrix(days(STOP)), "stop")],
        early_stopping_rounds=_PATIENCE,
        verbose_eval=False,
    )
    booster = booster[: booster.best_iteration + 1]
    _log.info("model: %d trees (%.0f s)", booster.num_boosted_rounds(), _since(began))

    def margins(rows: np.ndarray) -> np.ndarray:
        return booster.predict(matrix(rows), output_margin=True).astype(np.float64)

    calibrating, testing = days(CALIBRATE), days(TEST)
    a, b = platt(margins(calibrating), stream.labels[calibrating])

    def scores(rows: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-(a * margins(rows) + b)))

    review, decline = _thresholds(stream.labels[calibrating], scores(calibrating))
    labels, tested = stream.labels[testing], scores(testing)
    declined, reviewed = tested >= decline, (tested >= review) & (tested < decline)
    figures: dict[str, Any] = {
        "seed": seed,
        "stream": {"transactions": len(stream), "fraud_share": _round(stream.labels.mean())},
        "trees": booster.num_boosted_rounds(),
        "train_days": TRAIN,
        "stop_days": STOP,
        "calibration_days": CALIBRATE,
        "test_days": TEST,
        "test": {
            "transactions": len(labels),
            "fraud_share": _round(labels.mean()),
            "auc_pr": _round(average_precision(labels, tested)),
            "recall_at_1_percent_review": _round(recall_at_review_rate(labels, tested, 0.01)),
            "highest_possible_recall_at_1_percent_review": _round(min(1.0, 0.01 / labels.mean())),
            "recall_at_5_percent_review": _round(recall_at_review_rate(labels, tested, 0.05)),
            "brier": _round(np.mean((tested - labels) ** 2)),
            "brier_before_calibration": _round(np.mean((1 / (1 + np.exp(-margins(testing))) - labels) ** 2)),
            "declined_share": _round(declined.mean()),
            "declined_precision": _round(labels[declined].mean()),
            "reviewed_share": _round(reviewed.mean()),
            "reviewed_precision": _round(labels[reviewed].mean()),
            "frauds_declined_or_reviewed": _round(labels[declined | reviewed].sum() / labels.sum()),
        },
        "baseline_auc_pr": {
            "amount alone": _round(average_precision(labels, features[testing][:, 0].astype(np.float64))),
            "random": _round(labels.mean()),
        },
        "calibration": {"a": _round(a), "b": _round(b)},
        "thresholds": {"review": review, "decline": decline},
    }

    model, data = output / "model", output / "data"
    model.mkdir(parents=True, exist_ok=True)
    data.mkdir(parents=True, exist_ok=True)
    booster.save_model(model / "fraud.ubj")
    figures["model_bytes"] = (model / "fraud.ubj").stat().st_size
    (model / "metrics.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    (model / "ensemble.yaml").write_text(
        _ENSEMBLE.format(
            features=len(FEATURE_NAMES),
            columns="\n".join(f"      - {name}" for name in FEATURE_NAMES),
            a=a,
            b=b,
            review=review,
            decline=decline,
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
    return figures


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


def _round(value: Any) -> float:
    return round(float(value), 4)


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
    figures = train(arguments.output, arguments.seed, arguments.cache)
    print(json.dumps(figures["test"], indent=2))


if __name__ == "__main__":
    main()
