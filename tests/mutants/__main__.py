"""Sample mutants of a module and run its room's quick tests against each: `make mutants MODULE=serinus.protocol.raw`."""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import os
import queue
import signal
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

from .judging import equivalents
from .mutations import Mutation, sample
from .rooms import SOURCE_ROOTS, Module, UnknownModule, statement_lines
from .workplace import Workplace, files_of_tree

__all__ = ["main"]

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache" / "mutants"
# Of those that are not judged equivalent, this share must be noticed.
NEEDED = 0.9


@dataclass(slots=True)
class Outcome:
    """What became of one mutant: "killed", "time" (which counts as killed), "survived" or "equivalent"."""

    mutation: Mutation
    verdict: str
    seconds: float
    reason: str = ""


class Tests:
    """The tests of a room: the lines that each runs and the time that it takes, kept in .cache until a file changes."""

    def __init__(self, module: Module, workplace: Workplace) -> None:
        self.seconds: dict[str, float] = {}
        self._lines: dict[int, set[str]] = {}
        self._ran: Counter[str] = Counter()
        """Lines of the module that each test runs: of those that run a line, the ones that are about the module run more of it."""
        self.files = module.test_files(workplace.root)
        path = module.path(workplace.root).relative_to(workplace.root).as_posix()
        shared = hashlib.sha256()
        for name in files_of_tree(ROOT):
            if name.startswith((*SOURCE_ROOTS, "tests/support", "tests/conftest")):
                shared.update((ROOT / name).read_bytes())
        costs: dict[str, float] = {}
        for file in self.files:
            key = shared.copy()
            key.update((workplace.root / file).read_bytes())
            kept = CACHE / f"{file.replace('/', '.')}.{key.hexdigest()[:16]}.json"
            if not kept.is_file():
                CACHE.mkdir(parents=True, exist_ok=True)
                for stale in CACHE.glob(f"{file.replace('/', '.')}.*.json"):
                    stale.unlink()
                kept.write_text(json.dumps(workplace.record([file], 600)))
            found = json.loads(kept.read_text())
            self.seconds |= found["seconds"]
            costs[file] = sum(found["seconds"].values())
            for line, tests in found["lines"].get(path, {}).items():
                self._lines.setdefault(int(line), set()).update(tests)
                self._ran.update(tests)
        self.files.sort(key=lambda file: costs[file])

    def of(self, lines: range) -> list[str]:
        """Return the tests that run one of the lines, those first that run most of the module in a second.

        All files of the room, the quickest first, where it runs at import, or in no test's own process.
        """
        found = set().union(*(self._lines.get(line, set()) for line in lines))
        if not found or "" in found:
            return self.files
        return sorted(found, key=lambda test: self.seconds[test] / self._ran[test])

    def limit_s(self, tests: list[str]) -> float:
        """Return how long a run of these may take: four times what it took, and half a minute."""
        return 30 + 4 * sum(self.seconds.get(test, 0) for test in (self.seconds if tests == self.files else tests))


def _judge(mutation: Mutation, module: Module, tests: Tests, place: Workplace, original: str, confirm: bool) -> Outcome:
    path = module.path(place.root)
    lines = statement_lines(ast.parse(original), mutation.line)
    total = 0.0
    chosen = tests.of(lines)
    place.write(path, mutation.source)
    try:
        for asked in [chosen, tests.files] if confirm and chosen != tests.files else [chosen]:
            status, seconds = place.run(asked, tests.limit_s(asked))
            total += seconds
            if status is None:
                return Outcome(mutation, "time", total)
            if status != 0:
                return Outcome(mutation, "killed", total, _first_failure(place.output()))
        return Outcome(mutation, "survived", total)
    finally:
        place.write(path, original)


def _first_failure(output: str) -> str:
    found = [line for line in output.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return found[0][:150] if found else output[-200:].strip().replace("\n", " | ")


def _report(module: str, outcomes: list[Outcome], verbose: bool) -> bool:
    for outcome in outcomes:
        if verbose or outcome.verdict == "survived":
            print(f"{outcome.verdict} ({outcome.seconds:.1f} s) {outcome.mutation}\n    {outcome.reason}".rstrip())
    count = {
        verdict: sum(o.verdict == verdict for o in outcomes) for verdict in ("killed", "time", "survived", "equivalent")
    }
    different = len(outcomes) - count["equivalent"]
    killed = count["killed"] + count["time"]
    share = killed / different if different else 1.0
    print(
        f"{module}: sampled {len(outcomes)}, equivalent {count['equivalent']}, killed {killed} of {different} "
        f"({share:.0%}; {count['time']} by time), {sum(o.seconds for o in outcomes):.0f} s",
        flush=True,
    )
    return share >= NEEDED


def main() -> int:
    """Return 0 where enough mutants of each module were noticed, 1 where not, 2 for a name that is none of ours."""
    parser = argparse.ArgumentParser(prog="mutants", description=__doc__)
    parser.add_argument("modules", nargs="+", metavar="MODULE")
    parser.add_argument("--sample", type=int, default=40, metavar="N")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=max(1, (os.cpu_count() or 2) // 2))
    parser.add_argument("--quick", action="store_true", help="do not run the room's other tests against a survivor")
    parser.add_argument("--verbose", action="store_true", help="show the killed ones too")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the copies are removed
    enough = True
    with ExitStack() as stack:
        pool = ThreadPoolExecutor(options.jobs)
        stack.callback(pool.shutdown, cancel_futures=True)
        places: queue.SimpleQueue[Workplace] = queue.SimpleQueue()
        for _ in range(options.jobs):
            places.put(stack.enter_context(closing(Workplace(ROOT))))

        def judge(mutation: Mutation, module: Module, tests: Tests, original: str) -> Outcome:
            reason = known.get((mutation.was, mutation.now))
            if reason is not None:
                return Outcome(mutation, "equivalent", 0.0, reason)
            place = places.get()
            try:
                return _judge(mutation, module, tests, place, original, not options.quick)
            finally:
                places.put(place)

        for name in options.modules:
            module = Module(name)
            try:
                original = module.path(ROOT).read_text()
                place = places.get()
                tests = Tests(module, place)
                places.put(place)
            except UnknownModule as error:
                print(f"mutants: {error}", file=sys.stderr)
                return 2
            known = equivalents(name)
            found = sample(original, options.sample, options.seed)
            outcomes = list(
                pool.map(lambda m, module=module, tests=tests, text=original: judge(m, module, tests, text), found)
            )
            enough &= _report(name, outcomes, options.verbose)
    return 0 if enough else 1


if __name__ == "__main__":
    sys.exit(main())
