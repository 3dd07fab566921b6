"""A copy of the tree in a temporary folder, where a module may be changed and tests run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from .rooms import SOURCE_ROOTS

__all__ = ["Workplace", "files_of_tree"]


def files_of_tree(root: Path) -> list[str]:
    """Return what git knows or would add, and the compiled kernels, relative to the root."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    )
    kernels = [path.relative_to(root).as_posix() for path in (root / "runtimes").rglob("_kernels.so")]
    return sorted({name for name in listed.stdout.split("\0") if name and (root / name).is_file()} | set(kernels))


class Workplace:
    """A copy of the tree and a process that runs tests in it; the checkout itself is only read."""

    def __init__(self, checkout: Path) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="serinus-mutants-"))
        for name in files_of_tree(checkout):
            (self.root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(checkout / name, self.root / name)
        # Before the editable install, and inherited by the servers that tests start.
        paths = os.pathsep.join(str(self.root / source) for source in SOURCE_ROOTS)
        self._runner = subprocess.Popen(
            [sys.executable, str(self.root / "tests" / "mutants" / "runner.py")],
            cwd=self.root,
            env=os.environ | {"PYTHONPATH": paths},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._writes = 0

    def close(self) -> None:
        """End the process, and what it runs, and remove the folder."""
        if self._runner.stdin is not None:
            self._runner.stdin.close()
        self._runner.terminate()
        try:
            self._runner.wait(10)
        except subprocess.TimeoutExpired:
            self._runner.kill()
            self._runner.wait()
        shutil.rmtree(self.root, ignore_errors=True)

    def write(self, path: Path, source: str) -> None:
        """Write a module's source; its time differs at each writing, so that no compiled file of another one is read."""
        path.write_text(source)
        self._writes += 1
        os.utime(path, (1_000_000_000 + self._writes, 1_000_000_000 + self._writes))

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._runner.stdin is not None
        assert self._runner.stdout is not None
        request["output"] = str(self.root / "output.txt")
        self._runner.stdin.write(json.dumps(request) + "\n")
        self._runner.stdin.flush()
        answer = self._runner.stdout.readline()
        if not answer:
            raise RuntimeError("the process that runs the tests has ended")
        return json.loads(answer)

    def run(self, tests: list[str], limit_s: float) -> tuple[int | None, float]:
        """Run tests until one fails; return pytest's exit status (None: the time was over) and the seconds it took."""
        answer = self._ask({"tests": tests, "limit_s": limit_s})
        return answer["status"], answer["seconds"]

    def record(self, tests: list[str], limit_s: float) -> dict[str, Any]:
        """Run tests of an unchanged tree; return the seconds of each, and the tests that run each line of each file.

        Raises:
            RuntimeError: a test fails; what pytest said is in the message.
        """
        record = self.root / "record.json"
        answer = self._ask({"tests": tests, "limit_s": limit_s, "record": str(record)})
        if answer["status"] not in (0, 5):  # 5: none of the file's tests is quick
            raise RuntimeError(
                f"{' '.join(tests)} fail without any mutation (status {answer['status']}):\n{self.output()[-3000:]}"
            )
        return json.loads(record.read_text())

    def output(self) -> str:
        """Return what the last run printed."""
        return (self.root / "output.txt").read_text(errors="replace")
