"""`serinus serve` on loopback, for trials: started with settings, loaded from another process, asked for its metrics."""

from __future__ import annotations

import http.client
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from ...client.metadata_answers import model_document
from ...errors import ConfigError
from ...protocol.types import ModelMetadata
from ..search import Config
from .loadgen import Job, LoadResult

__all__ = ["ServerUnderTest", "run_job"]

_READY_S = 120.0
_LISTENING = re.compile(r"REST on 127\.0\.0\.1:(\d+)")


class ServerUnderTest:
    """One running server; use as a context manager.

    Args:
        model: directory or file.
        config: the settings to try.
        arguments: further words of `serinus serve` (`--class ...`).

    Raises:
        ConfigError: it ended, or was not ready in time; with the last line that it said.
    """

    def __init__(self, model: Path, config: Config, arguments: Sequence[str] = ()) -> None:
        self._log = tempfile.TemporaryFile("w+b")  # noqa: SIM115 # closed with the process
        flags = ["--host", "127.0.0.1", "--http_port", "0", "--enable_grpc", "false", "--model_name", "model"]
        for name in ("workers", "execution", "instances", "max_batch_rows", "max_delay_s"):
            flags += [f"--{name}", str(getattr(config, name))]
        if config.threads:
            flags += ["--nthread", str(config.threads)]
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("SERINUS_", "MLSERVER_"))}
        environment.update({key: os.environ[key] for key in ("SERINUS_CACHE_DIR",) if key in os.environ})
        self._process = subprocess.Popen(
            [sys.executable, "-m", "serinus.cli", "serve", str(model), *flags, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
        try:
            self.port = self._wait_until_ready()
        except BaseException:
            self.close()
            raise

    def get(self, path: str) -> bytes:
        """GET a path.

        Raises:
            ConfigError: another status than 200.
        """
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            content = answer.read()
        finally:
            connection.close()
        if answer.status != 200:
            raise ConfigError(f"GET {path} answered {answer.status}: {content[:200].decode(errors='replace')}")
        return content

    def metadata(self) -> ModelMetadata:
        """The model's metadata.

        Raises:
            UpstreamFailed: it is not V2's.
        """
        return model_document(self.get("/v2/models/model"), "the server")

    def metrics(self) -> str:
        """The Prometheus page."""
        return self.get("/metrics").decode()

    def close(self) -> None:
        """Stop the server."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)  # its own session, so its own group
                self._process.wait()
        self._log.close()

    def __enter__(self) -> ServerUnderTest:  # noqa: PYI034 # typing.Self is of Python 3.11
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _wait_until_ready(self) -> int:
        deadline = time.monotonic() + _READY_S
        while time.monotonic() < deadline:
            self._log.seek(0)
            said = self._log.read().decode(errors="replace")
            found = _LISTENING.search(said)
            if found:
                self.port = int(found[1])
                try:
                    self.get("/v2/health/ready")
                    return self.port
                except (ConfigError, OSError):
                    pass
            if self._process.poll() is not None:
                lines = said.strip().splitlines()
                raise ConfigError(
                    f"serinus serve ended with status {self._process.returncode}: {lines[-1] if lines else 'it said nothing'}"
                )
            time.sleep(0.05)
        raise ConfigError(f"serinus serve was not ready in {_READY_S:.0f} s")


def run_job(job: Job) -> LoadResult:
    """Run a job in a process of its own.

    Raises:
        ConfigError: the generator could not reach the server.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "serinus.tuning.load.loadgen"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, error = process.communicate(job.to_json())
    except BaseException:
        process.kill()
        process.wait()
        raise
    if process.returncode:
        lines = error.strip().splitlines()
        raise ConfigError(f"the load generator failed: {lines[-1] if lines else process.returncode}")
    return LoadResult.from_json(out)
