"""Fuzz every kernel that meets untrusted bytes: `make fuzz SECONDS=60` (so long for each target).

`json_split`, `json_number` and `frame_scan` are libFuzzer's (clang), guided by coverage. `model_arrays` runs the kernels from Python, compiled by gcc
with AddressSanitizer. Each starts from tests/native/corpus/TARGET and keeps what it finds new in .cache/fuzz/TARGET. A finding ends the
run with status 1 and the file that shows it: mend the kernel, and add the file to the corpus, which the tests replay.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "support"))

from native_support import CORPUS, FUZZ, LIBFUZZER_TARGETS, compile_program, preloaded, sanitized_library

CACHE = Path(__file__).resolve().parents[3] / ".cache" / "fuzz"
LONGEST_INPUT_BYTES = 4096
LONGEST_RUN_S = 10
DICTIONARIES = {"json_split": "json.dict", "json_number": "json.dict", "frame_scan": "frames.dict"}
"""Words that each target's inputs are made of."""


def fuzz_by_coverage(target: str, seconds: int, folder: Path) -> int:
    program = folder / target
    compile_program(
        ["clang"], program, FUZZ / f"{target}.c", flags=("-O2", "-g", "-fsanitize=fuzzer,address,undefined")
    )
    found = CACHE / target
    found.mkdir(parents=True, exist_ok=True)
    options = [
        f"-max_total_time={seconds}",
        f"-max_len={LONGEST_INPUT_BYTES}",
        f"-timeout={LONGEST_RUN_S}",
        f"-dict={FUZZ / DICTIONARIES[target]}",
        f"-artifact_prefix={CACHE}/{target}-",
        "-print_final_stats=1",
        "-verbosity=0",
    ]
    return subprocess.run([str(program), *options, str(found), str(CORPUS / target)], check=False).returncode


def fuzz_model_arrays(seconds: int, seed: int, folder: Path) -> int:
    found = CACHE / "model_arrays"
    found.mkdir(parents=True, exist_ok=True)
    library = sanitized_library(folder)
    files = [*(CORPUS / "model_arrays").iterdir(), *found.glob("[0-9]*")]
    command = [sys.executable, str(FUZZ / "model_arrays.py"), *map(str, files), "--library", str(library)]
    options = ["--seconds", str(seconds), "--seed", str(seed), "--keep", str(found)]
    status = subprocess.run([*command, *options], env=preloaded(), check=False).returncode
    if status != 0:
        print(f"the input under way: {found / 'crash'}", file=sys.stderr)
    return status


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--seed", type=int, default=0, help="of model_arrays; libFuzzer draws its own")
    options = parser.parse_args()
    missing = [name for name in ("clang", "gcc") if shutil.which(name) is None]
    if missing:
        print(f"fuzzing needs {' and '.join(missing)} (Debian: clang libclang-rt-14-dev gcc)", file=sys.stderr)
        return 1
    status = 0
    with tempfile.TemporaryDirectory() as folder:
        for target in LIBFUZZER_TARGETS:
            print(f"{target}: {options.seconds} s", flush=True)
            status |= fuzz_by_coverage(target, options.seconds, Path(folder)) != 0
        print(f"model_arrays: {options.seconds} s", flush=True)
        status |= fuzz_model_arrays(options.seconds, options.seed, Path(folder)) != 0
    return status


if __name__ == "__main__":
    sys.exit(main())
