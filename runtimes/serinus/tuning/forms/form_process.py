"""The driver's end of `worker`: a process per form."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from ...errors import SerinusError

__all__ = ["FormFailed", "FormProcess"]


class FormFailed(SerinusError):
    """A form cannot be loaded or run here."""


class FormProcess:
    """One worker; use as a context manager."""

    def __init__(self) -> None:
        self._log = tempfile.TemporaryFile("w+b")  # noqa: SIM115 # closed with the process
        # A session of its own: Ctrl-C is the driver's, which saves what there is and then ends its workers.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "serinus.tuning.forms.form_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            start_new_session=True,
        )

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Send a command and wait for its answer.

        Raises:
            FormFailed: it failed there, or the process died.
        """
        to, back = self._process.stdin, self._process.stdout
        if to is None or back is None:  # Popen was given both pipes
            raise FormFailed("the process has no pipes")
        values = {key: str(value) if isinstance(value, Path) else value for key, value in arguments.items()}
        try:
            to.write(json.dumps({"do": do, **values}).encode() + b"\n")
            to.flush()
            line = back.readline()
        except BrokenPipeError:
            line = b""
        if not line:
            status = self._process.wait()
            self._log.seek(0)
            lines = self._log.read().decode(errors="replace").strip().splitlines()
            raise FormFailed(f"the process ended with status {status}: {lines[-1] if lines else 'it said nothing'}")
        answer = json.loads(line)
        if "error" in answer:
            raise FormFailed(answer["error"])
        return answer

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                try:
                    stream.close()
                except BrokenPipeError:
                    pass
        self._log.close()

    def __enter__(self) -> FormProcess:  # noqa: PYI034 # typing.Self is of Python 3.11
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
