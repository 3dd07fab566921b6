"""Fuzz every reader of bytes, each in a process of its own: `python tests/reliability/fuzz/run.py --seconds 60 [TARGET ...]`.

Guided by coverage where atheris is installed (`pip install atheris`: it has wheels for CPython 3.11 to 3.13), else with mutators of our own. Begins with good
inputs and with what earlier runs found (.cache/fuzz/TARGET). A finding ends its target: an error that is not the library's, more than 10 s,
more than 2 GiB, a crash; the input is left as .cache/fuzz/TARGET-*, and `--replay FILE TARGET` makes it again. Prints seed, executions
and CPU time of each.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import random
import re
import resource
import subprocess
import sys
import time
from pathlib import Path

TESTS = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(TESTS), str(TESTS / "support")]

CACHE = TESTS.parent / ".cache" / "fuzz"
LONGEST_BYTES = 8192
LONGEST_S = 10
MEMORY_MB = 2048
PACKAGES = ["serinus", "xgboost_server", "lightgbm_server", "sklearn_server", "catboost_server"]


def load_targets() -> dict[str, object]:
    """All targets, by name."""
    from reliability.fuzz import bodies, connections, documents, files, targets

    del bodies, connections, documents, files  # imported for the targets that they register
    return dict(targets.TARGETS)


def _corpus(name: str, seeds: list[bytes]) -> Path:
    folder = CACHE / name
    folder.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        (folder / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed)
    return folder


def _by_coverage(name: str, seconds: int, seed: int) -> None:
    """Run in this process, which ends."""
    import atheris

    with atheris.instrument_imports(include=PACKAGES):
        one = load_targets()[name]
        folder = _corpus(name, one.seeds())  # type: ignore[attr-defined] # a Target
    words = [
        sys.argv[0],
        f"-max_total_time={seconds}",
        f"-seed={seed}",
        f"-max_len={LONGEST_BYTES}",
        f"-timeout={LONGEST_S}",
        f"-rss_limit_mb={MEMORY_MB}",
        f"-artifact_prefix={CACHE}/{name}-",
        "-print_final_stats=1",
        "-verbosity=0",
        str(folder),
    ]
    atheris.Setup(words, lambda data: one(data) and 0)  # type: ignore[operator] # a Target
    atheris.Fuzz()


def _by_mutation(name: str, seconds: int, seed: int) -> None:
    from fuzz_support import mutate

    one = load_targets()[name]
    pool = [path.read_bytes() for path in sorted(_corpus(name, one.seeds()).iterdir())]  # type: ignore[attr-defined]
    chance, runs, end = random.Random(seed), 0, time.monotonic() + seconds
    while time.monotonic() < end:
        data = mutate(chance.choice(pool), chance)[:LONGEST_BYTES]
        try:
            one(data)  # type: ignore[operator] # a Target
        except BaseException:
            (CACHE / f"{name}-crash-{hashlib.sha256(data).hexdigest()[:16]}").write_bytes(data)
            raise
        runs += 1
    print(f"stat::number_of_executed_units: {runs}", file=sys.stderr)


def main() -> int:
    """Run each target, or one in this process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", nargs="*")
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--seed", type=int, default=0, help="0: drawn, and printed")
    parser.add_argument("--here", action="store_true", help="fuzz the one target in this process")
    parser.add_argument("--replay", type=Path, help="read this file alone, as the target does")
    options = parser.parse_args()
    guided = importlib.util.find_spec("atheris") is not None
    if options.replay:
        print("taken" if load_targets()[options.targets[0]](options.replay.read_bytes()) else "refused")  # type: ignore[operator]
        return 0
    if options.here:
        (_by_coverage if guided else _by_mutation)(options.targets[0], options.seconds, options.seed)
        return 0
    seed = options.seed or random.SystemRandom().randrange(1, 1 << 31)
    print(f"seed {seed}; {'guided by coverage (atheris)' if guided else 'mutators without coverage: no atheris here'}")
    status = 0
    for name in options.targets or load_targets():
        status |= _run(name, options.seconds, seed)
    return status


def _computed_s() -> float:
    """CPU time of all targets that have ended: on a busy machine the clock on the wall says little."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _run(name: str, seconds: int, seed: int) -> int:
    command = [sys.executable, __file__, name, "--here", "--seconds", str(seconds), "--seed", str(seed)]
    began, computed = time.monotonic(), _computed_s()
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    took, computed = time.monotonic() - began, _computed_s() - computed
    found = re.search(r"stat::number_of_executed_units: *(\d+)", done.stderr)
    runs = found[1] if found else "unknown"
    print(
        f"{name}: {runs} executions in {took:.0f} s ({computed:.0f} s of CPU), seed {seed}: {'FINDING' if done.returncode else 'nothing'}",
        flush=True,
    )
    if done.returncode:
        told = [line for line in done.stderr.splitlines() if not line.startswith("INFO: Instrumenting")]
        print(done.stdout[-2000:] + "\n".join(told)[-6000:], flush=True)
    return int(done.returncode != 0)


if __name__ == "__main__":
    sys.exit(main())
