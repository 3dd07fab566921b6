"""One form in a process of its own: `python -m serinus.tuning.forms.form_worker`, one JSON command a line, one JSON answer a line.

Frameworks keep thread pools and caches for the life of a process, and memory can only be told apart by process; so each
form lives in its own, and the driver gives them turns. What a framework prints goes to standard error.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import logging
import os
import resource
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import SerinusError
from ...hosts import build_model
from ...loading import settings_from_directory
from ...model import Call, Model
from ...settings import ModelSettings
from .model_forms import Form
from .samples import take_rows

__all__ = ["main"]


class _Worker:
    """Holds one loaded model."""

    def __init__(self) -> None:
        self._model: Model | None = None
        self._samples: dict[str, np.ndarray] = {}

    def export(self, path: str, package: str, samples: str, output: str) -> dict[str, Any]:
        """Let a package make the forms that it can."""
        if importlib.util.find_spec(f"{package}.export") is None:
            return {"found": []}
        module = importlib.import_module(f"{package}.export")
        with np.load(samples, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        found = []
        with warnings.catch_warnings():
            # Exporters are what their frameworks call legacy; what they warn of is checked by comparing the outputs.
            warnings.simplefilter("ignore")
            for item in module.export(_settings(path), arrays, Path(output)):
                entry = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(item).items()}
                found.append({"kind": "form" if isinstance(item, Form) else "skipped", **entry})
        return {"found": found}

    def load(self, path: str, threads: int) -> dict[str, Any]:
        """Load a form, as the server does."""
        settings = _settings(path)
        started = time.perf_counter()
        model = build_model(replace(settings, threads=threads or settings.threads))
        model.load()
        self._model = model
        return {
            "inputs": [[spec.name, spec.datatype, list(spec.shape), spec.optional] for spec in model.inputs],
            "package": settings.implementation.partition(".")[0].partition(":")[0],
            "name": settings.name,
            "details": {key: str(value) for key, value in model.details.items()},
            "load_s": time.perf_counter() - started,
            "batchable": model.batchable,
        }

    def samples(self, path: str) -> dict[str, Any]:
        """Read the rows to predict, under the names that this form gives its inputs."""
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        names = [spec.name for spec in self._loaded().inputs if not spec.optional]
        if len(names) == len(arrays) and set(names) != set(arrays):
            arrays = dict(zip(names, arrays.values(), strict=True))
        self._samples = arrays
        return {}

    def predict(self, rows: int, output: str) -> dict[str, Any]:
        """Predict once and keep the outputs."""
        outputs = self._loaded().predict(take_rows(self._samples, rows), Call())
        np.savez(output, allow_pickle=False, **{name: _storable(array) for name, array in outputs.items()})
        return {}

    def time(self, rows: int, seconds: float, most: int) -> dict[str, Any]:
        """Predict again and again for a while, each time with other rows."""
        batches = [take_rows(self._samples, rows, start) for start in range(0, min(8 * rows, 64), rows)] or [
            take_rows(self._samples, rows)
        ]
        model, call, times = self._loaded(), Call(), []
        until, cpu = time.perf_counter() + seconds, time.process_time()
        while len(times) < most:
            batch = batches[len(times) % len(batches)]
            start = time.perf_counter()
            model.predict(batch, call)
            end = time.perf_counter()
            times.append(end - start)
            if end >= until:
                break
        return {"times_s": times, "cpu_s": (time.process_time() - cpu) / len(times)}

    def _loaded(self) -> Model:
        if self._model is None:
            raise SerinusError("no model is loaded")
        return self._model

    def memory(self) -> dict[str, Any]:
        """Resident memory now, and the most so far, bytes."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        try:
            now = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except OSError:
            now = peak
        return {"rss_bytes": now, "peak_bytes": peak}


def _settings(path: str) -> ModelSettings:
    found = settings_from_directory(Path(path))
    if len(found) != 1:
        names = ", ".join(settings.version or settings.name for settings in found)
        raise SerinusError(f"{path}: holds several models ({names}); name one")
    return replace(found[0], name=found[0].name or "model")


def _storable(array: np.ndarray) -> np.ndarray:
    """NumPy keeps objects only by pickle; strings have a type of their own."""
    return np.asarray(array, dtype=np.bytes_) if array.dtype == object else array


def main() -> int:
    """Answer commands until standard input ends."""
    logging.basicConfig(level=logging.WARNING)
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    worker = _Worker()
    for line in sys.stdin:
        command: Mapping[str, Any] = json.loads(line)
        do: Callable[..., dict[str, Any]] = getattr(worker, command["do"])
        try:
            answer = do(**{key: value for key, value in command.items() if key != "do"})
        except SerinusError as error:
            answer = {"error": str(error)}
        except Exception as error:  # whatever a framework raises is this form's failure, not the comparison's
            logging.getLogger("serinus.tuning").debug("%s failed", command["do"], exc_info=True)
            text = str(error).strip().splitlines()
            answer = {"error": f"{type(error).__name__}: {text[0] if text else ''}"}
        answers.write(json.dumps(answer) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
