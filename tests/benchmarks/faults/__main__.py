"""The fault table, measured: `PYTHONPATH=tests:tests/support python -m benchmarks.faults [NAME ...]`.

Each fault is made in servers of its own, with a watch that asks the neighbour and both probes every 50 ms all along. Prints a row a fault, as
Markdown; ends with status 1 where something that must hold does not.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "support"))

from benchmarks.faults.table import HEAD, broken, can_run, shown
from benchmarks.faults.table import ROWS as ALL


def main() -> int:
    """Make each fault, print what was seen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(ALL)}; all by default")
    options = parser.parse_args()
    print(HEAD)
    status = 0
    for name in options.names or ALL:
        row = ALL[name]
        if missing := can_run(row):
            print(f"| {row.fault} | not run: {missing} |", flush=True)
            continue
        with tempfile.TemporaryDirectory(prefix="serinus-faults-") as folder:
            try:
                observed = row.run(Path(folder))
            except Exception as error:  # one row that fails does not keep the others from being measured
                print(f"| {row.fault} | FAILED: {type(error).__name__}: {str(error)[-600:]} |", flush=True)
                status = 1
                continue
        print(shown(row, observed), flush=True)
        for problem in broken(row, observed):
            print(f"{name}: {problem}", file=sys.stderr, flush=True)
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
