"""The committed transactions: held-out ones with labels to score, and the history before them that fills the windows.

`transactions.csv.gz` is one late day, as plain text. `history.npz` holds the `KEEP_DAYS` days before it, packed: a
customer's home and a terminal's place are kept once, and a delivery only where it is neither. Both decode to the very
numbers that the simulator made, so that features after a warm-up equal those of training to the last bit.
"""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from .schema import COLUMNS, RawTensor

__all__ = ["DATATYPES", "Sample", "load_history", "load_sample", "raw_tensors", "save_history", "save_sample"]

DATATYPES: Final[Mapping[str, str]] = {column.name: column.datatypes[0] for column in COLUMNS}
"""Datatype of each column that a `Sample` holds."""

_TEXT: Final = ("transaction_id", "customer_id", "terminal_id", "type")
_FLOAT: Final = (
    "amount", "shipping_lat", "shipping_long", "billing_lat", "billing_long", "terminal_lat", "terminal_long",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Sample:
    """Raw transactions in time order, with what became of them."""

    columns: dict[str, np.ndarray]
    """One array [n] per column: object arrays of `bytes` (ids, type), int64 (datetime) or float64."""
    labels: np.ndarray
    """int8 [n]: 1 for fraud."""

    def __len__(self) -> int:
        return len(self.labels)

    def part(self, start: int, stop: int) -> Sample:
        """Rows from `start` to before `stop`."""
        return Sample({name: values[start:stop] for name, values in self.columns.items()}, self.labels[start:stop])

    def batches(self, rows: int) -> Iterator[Sample]:
        """Cut into parts of `rows` rows; the last may be shorter."""
        for start in range(0, len(self), rows):
            yield self.part(start, start + rows)


def raw_tensors(sample: Sample, *, with_labels: bool = False) -> dict[str, RawTensor]:
    """The columns as `column_reader.parse` takes them; `with_labels` adds the column `fraud`."""
    tensors = {name: RawTensor(DATATYPES[name], values.shape, values) for name, values in sample.columns.items()}
    if with_labels:
        tensors["fraud"] = RawTensor("INT8", sample.labels.shape, sample.labels)
    return tensors


def _text(values: list[bytes]) -> np.ndarray:
    array = np.empty(len(values), object)
    array[:] = values
    return array


def load_sample(path: str | Path) -> Sample:
    """Read `transactions.csv.gz`; a folder stands for the file in it."""
    path = Path(path)
    with gzip.open(path / "transactions.csv.gz" if path.is_dir() else path, "rt", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    columns: dict[str, np.ndarray] = {name: _text([row[name].encode() for row in rows]) for name in _TEXT}
    columns["datetime"] = np.array([int(row["datetime"]) for row in rows], np.int64)
    columns |= {name: np.array([float(row[name]) for row in rows]) for name in _FLOAT}
    ordered = {name: columns[name] for name in DATATYPES if name in columns}
    return Sample(ordered, np.array([int(row["fraud"]) for row in rows], np.int8))


def save_sample(path: Path, sample: Sample) -> None:
    """Write `transactions.csv.gz`, the same bytes for the same rows."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*sample.columns, "fraud"])
    lists = [[v.decode() if isinstance(v, bytes) else v for v in values.tolist()] for values in sample.columns.values()]
    writer.writerows(zip(*lists, sample.labels.tolist(), strict=True))
    packer = zlib.compressobj(
        9, zlib.DEFLATED, 16 + zlib.MAX_WBITS
    )  # gzip.compress names another system in each version of Python
    path.write_bytes(packer.compress(text.getvalue().encode()) + packer.flush())


def load_history(path: str | Path) -> Sample:
    """Read `history.npz`; a folder stands for the file in it."""
    path = Path(path)
    with np.load(path / "history.npz" if path.is_dir() else path, allow_pickle=False) as file:
        packed = {name: file[name] for name in file.files}
    customer, terminal = packed["customer"], packed["terminal"]
    home, place = packed["homes"][customer], packed["places"][terminal]
    delivery = np.where((packed["delivery"] == 1)[:, None], place, home)
    delivery[packed["delivery"] == 2] = packed["deliveries"]
    columns = {
        "transaction_id": _text([b"%d" % v for v in (packed["first_id"] + np.cumsum(packed["id_step"])).tolist()]),
        "datetime": packed["start"] + np.cumsum(packed["time_step"], dtype=np.int64),
        "customer_id": _text([b"C%04d" % v for v in customer.tolist()]),
        "terminal_id": _text([b"T%04d" % v for v in terminal.tolist()]),
        "amount": packed["cents"] / 100.0,
        "type": _text([b"CP" if v else b"CNP" for v in packed["present"].tolist()]),
        "shipping_lat": delivery[:, 0],
        "shipping_long": delivery[:, 1],
        "billing_lat": home[:, 0],
        "billing_long": home[:, 1],
        "terminal_lat": place[:, 0],
        "terminal_long": place[:, 1],
    }
    return Sample(columns, packed["fraud"])


def save_history(path: Path, history: Sample) -> None:
    """Write `history.npz`.

    Raises:
        ValueError: the rows do not come back as they were.
    """
    c = history.columns
    customer = np.array([int(v[1:]) for v in c["customer_id"]], np.uint16)
    terminal = np.array([int(v[1:]) for v in c["terminal_id"]], np.uint16)
    homes = np.zeros((int(customer.max()) + 1, 2))
    homes[customer] = np.stack([c["billing_lat"], c["billing_long"]], 1)
    places = np.zeros((int(terminal.max()) + 1, 2))
    places[terminal] = np.stack([c["terminal_lat"], c["terminal_long"]], 1)
    shipping = np.stack([c["shipping_lat"], c["shipping_long"]], 1)
    delivery = np.full(len(history), 2, np.uint8)
    delivery[(shipping == places[terminal]).all(1)] = 1
    delivery[(shipping == homes[customer]).all(1)] = 0
    ids = np.array([int(v) for v in c["transaction_id"]], np.int64)
    seconds = c["datetime"]
    np.savez_compressed(
        path,
        customer=customer,
        terminal=terminal,
        homes=homes,
        places=places,
        delivery=delivery,
        deliveries=shipping[delivery == 2],
        first_id=ids[0],
        id_step=np.diff(ids, prepend=ids[0]).astype(np.int32),
        start=seconds[0],
        time_step=np.diff(seconds, prepend=seconds[0]).astype(np.int32),
        cents=np.rint(c["amount"] * 100).astype(np.int32),
        present=(c["type"] == b"CP"),
        fraud=history.labels.astype(np.int8),
    )
    back = load_history(path)
    for name, values in c.items():
        if not np.array_equal(values, back.columns[name]):
            raise ValueError(f"column '{name}' does not come back from {path}")
