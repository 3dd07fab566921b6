"""The stream of transactions that `training` and `novelty` use, and its features.

It is synccfd's: the Fraud Detection Handbook's simulator with places. Features come from the code that serves (`column_reader`, `store`,
`features`).
"""

from __future__ import annotations

import contextlib
import io
import warnings
from pathlib import Path
from typing import Final

import numpy as np

from .column_reader import parse
from .features import batch_of, compute
from .sample import Sample, raw_tensors
from .schema import Labels
from .store import MemoryStore

__all__ = ["SCENARIOS", "generate", "replay", "stream_days"]

START: Final = "2025-01-01"
"""The stream's first day: in the past, so that a replay is not refused as lying in the future."""
CUSTOMERS: Final = 1000
TERMINALS: Final = 2000
DAYS: Final = 110
SCENARIOS: Final = {1: "high amount", 2: "compromised terminal", 3: "stolen number", 4: "stolen card"}
"""The simulator's kinds of fraud: any amount above 220; every transaction of a terminal for 28 days; places and amounts of a
customer's transactions without the card for 14 days; with it for 5."""


def generate(seed: int, cache: Path) -> tuple[Sample, np.ndarray]:
    """Make the stream, or read it from the cache: 216 447 transactions in ~1 minute.

    Returns:
        The stream, and the scenario of each transaction, int8 [n]: 0 genuine, 1 to 4 the kinds of fraud (`SCENARIOS`).
    """
    path = cache / f"synccfd-{CUSTOMERS}-{TERMINALS}-{DAYS}-{seed}-scenarios.npz"
    if path.exists():
        with np.load(path, allow_pickle=False) as file:
            columns = {
                name: file[name].astype(object) if file[name].dtype.kind == "S" else file[name] for name in file.files
            }
        return Sample(columns, columns.pop("fraud")), columns.pop("scenario")
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
    labels, scenarios = frame["TX_FRAUD"].to_numpy(np.int8), frame["TX_FRAUD_SCENARIO"].to_numpy(np.int8)
    cache.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, fraud=labels, scenario=scenarios, **columns)
    return Sample({k: v.astype(object) if v.dtype.kind == "S" else v for k, v in columns.items()}, labels), scenarios


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


def stream_days(stream: Sample) -> np.ndarray:
    """Day of each transaction, from 0."""
    seconds = stream.columns["datetime"]
    return (seconds - seconds[0] // 86400 * 86400) // 86400
