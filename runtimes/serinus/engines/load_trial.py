"""Whether loading a model ends the process: tried in a process of its own first, where the framework's readers trust a file too far.

Theory of operation. A framework in C++ may end the process over a damaged or hostile file, and with it every model of the server. Where no
check of ours can tell beforehand, the runtime's class loads the file in a child process and predicts zeros there. Only a child that is ended
by a signal speaks against the file; an error is told by the load that follows, in its own words. What came out is recorded by
the checksum of the files and the framework's version (`verification_records`), so that each file is tried once; a model that ended its child is
refused at the next start without another. Trials run one at a time on a machine, and a child has ended before its model is loaded here: no model
is held twice.

`python -m serinus.engines.load_trial CLASS SETTINGS` is the child; SETTINGS is JSON.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib
import logging
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import orjson

from .. import verification_records
from ..errors import ConfigError
from ..model import Call, Model
from ..protocol.datatypes import NUMPY_DTYPES
from ..settings import ModelSettings

__all__ = ["main", "try_apart"]

_log = logging.getLogger("serinus.model")

_LONGEST_S: Final = 600.0
"""As long as a worker process may take to load its model (`dataplane.execution.process_pool`)."""
_ABOUT: Final = "trial"
_OF_OTHERS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Signals by which a server and all its children are stopped: they say nothing of a file."""
_SAID_BYTES: Final = 300
_CHUNK_BYTES: Final = 1 << 20


def try_apart(model: Model, files: Sequence[Path], facts: Mapping[str, str]) -> None:
    """Load a model's files in a process of their own, unless it is on record what comes of that or its settings want no trial.

    Args:
        model: not loaded; its class is importable by name.
        files: of the model, the one beside which a record may lie first.
        facts: what else decides: versions.

    Raises:
        ConfigError: a process ended over them.
    """
    if not model.settings.trial:
        return
    digest = _digest(files)
    paths = list(verification_records.paths(files[0], f"{digest}-{_ABOUT}", _ABOUT))
    wanted = {"files_sha256": digest, **facts}
    record = next((body for body in verification_records.load(paths) if _holds(body, wanted)), None)
    if record is None:
        with _alone():
            ended, said = _run(model)
        if ended is None:
            return
        record = {**wanted, "ended_by": ended, "said": said}
        verification_records.save(paths, record)
    if record["ended_by"]:
        why = f": {record['said']}" if record["said"] else ""
        raise ConfigError(
            f"{files[0]}: is not loaded, since loading it ended a process ({record['ended_by']}){why}; the file is damaged, or beyond what "
            f"the framework can take. --trial false loads it all the same, in this process"
        )


def _holds(body: Mapping[str, Any], wanted: Mapping[str, str]) -> bool:
    texts = all(isinstance(body.get(name), str) for name in ("ended_by", "said"))
    return texts and all(body.get(name) == value for name, value in wanted.items())


def _digest(files: Sequence[Path]) -> str:
    """SHA-256 of names and contents."""
    whole = hashlib.sha256()
    for file in files:
        content = hashlib.sha256()
        with file.open("rb") as opened:
            while chunk := opened.read(_CHUNK_BYTES):
                content.update(chunk)
        whole.update(f"{file.name} {content.hexdigest()}\n".encode())
    return whole.hexdigest()


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Wait until no other process of this user tries a model."""
    place = Path(tempfile.gettempdir()) / f"serinus-trial-{os.getuid()}.lock"
    try:
        lock = os.open(place, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError:  # nowhere to write: one more process at a time does less harm than none
        yield
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _run(model: Model) -> tuple[str | None, str]:
    """Run the child; returns the signal that ended it, empty if none did, None if nothing came out, and its last words."""
    settings, kind = model.settings, type(model)
    told = {
        "name": settings.name,
        "model_dir": str(settings.model_dir),
        "extra": dict(settings.extra),
        "told": sorted(settings.told),
        "allow_implementation": list(settings.allow_implementation),
        "allow_uri": list(map(str, settings.allow_uri)),
    }
    words = [sys.executable, "-m", __name__, f"{kind.__module__}:{kind.__qualname__}", orjson.dumps(told).decode()]
    surroundings = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    _log.info("model '%s': is loaded in a process of its own first, since it never was", settings.name)
    try:
        ran = subprocess.run(words, env=surroundings, capture_output=True, stdin=subprocess.DEVNULL, timeout=_LONGEST_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        _log.warning("model '%s': could not be tried in a process of its own: %s", settings.name, error)
        return None, ""
    if ran.returncode >= 0:
        return "", ""
    if -ran.returncode in _OF_OTHERS:
        return None, ""
    lines = [line.strip() for line in ran.stderr.decode(errors="replace").splitlines() if line.strip()]
    # What a framework aborts over stands on a line of its own; the last lines are often a trace.
    said = next((line for line in lines if "Check failed" in line or "FATAL" in line), "")
    return signal.Signals(-ran.returncode).name, said[:_SAID_BYTES]


def main(words: Sequence[str]) -> int:
    """Load a model and predict zeros; the exit status says nothing, a signal does."""
    with contextlib.suppress(OSError):  # where memory runs out, this process is to be ended and not the server
        Path("/proc/self/oom_score_adj").write_text("1000")
    module, _, name = words[0].partition(":")
    told = orjson.loads(words[1])
    settings = ModelSettings(
        name=told["name"],
        model_dir=Path(told["model_dir"]),
        extra=told["extra"],
        told=frozenset(told["told"]),
        threads=1,
        allow_implementation=tuple(told["allow_implementation"]),
        allow_uri=tuple(map(Path, told["allow_uri"])),
    )
    try:
        model: Model = getattr(importlib.import_module(module), name)(settings)
        model.load()
        if model.inputs:
            model.predict({spec.name: _zeros(spec.shape, spec.datatype) for spec in model.inputs}, Call())
    except Exception:  # noqa: BLE001 # told by the load that follows
        return 1
    return 0


def _zeros(shape: Sequence[int], datatype: str) -> np.ndarray:
    sizes = [1 if size == -1 else size for size in shape]
    return np.full(sizes, b"", object) if datatype == "BYTES" else np.zeros(sizes, NUMPY_DTYPES[datatype])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
