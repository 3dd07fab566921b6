"""The servers under test: `serinus serve` with the ill model and its neighbour, `serinus up` with tiny processes."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

from benchmarks.faults.rows import NEIGHBOUR, Observed, Watch, ask, infer
from local_support import Up, manifest, up
from serve_support import Served, serving
from waiting import wait_until

__all__ = ["ILL", "children", "clock", "local", "model_folder", "server", "workers"]

ILL = "ill"
"""The model that something is done to."""
SUPPORT = Path(__file__).resolve().parents[2] / "support"
clock = time.monotonic


def model_folder(folder: Path, name: str, class_name: str) -> Path:
    """Make `folder/repository/name` for a class of `fault_models`."""
    made = folder / "repository" / name
    made.mkdir(parents=True, exist_ok=True)
    settings = {"name": name, "implementation": f"fault_models.{class_name}", "parameters": {"uri": "."}}
    (made / "model-settings.json").write_text(json.dumps(settings))
    return made


@contextlib.contextmanager
def server(
    folder: Path,
    class_name: str,
    *flags: str,
    environment: dict[str, str] | None = None,
    python: str = sys.executable,
) -> Iterator[tuple[Served, Observed, Watch]]:
    """Serve the class as ILL beside NEIGHBOUR; yields with a watch that is not yet begun."""
    model_folder(folder, NEIGHBOUR, "Steady")
    if class_name:
        model_folder(folder, ILL, class_name)
    arguments = ("--model_repository", str(folder / "repository"), "--allow_implementation", "fault_models.*")
    with serving(
        folder,
        *arguments,
        *flags,
        environment={"PYTHONPATH": str(SUPPORT), **(environment or {})},
        timeout_s=90,
        python=python,
    ) as served:
        wait_until(lambda: ask(served.http_port, "/v2/health/ready") == "200")
        observed = Observed()
        port = served.http_port
        watch = Watch(
            observed,
            lambda: infer(port, NEIGHBOUR, 1, timeout_s=5),
            lambda probe: ask(port, f"/v2/health/{probe}", timeout_s=5),
        )
        yield served, observed, watch


def children(served: Served) -> list[psutil.Process]:
    """Processes below the server that run."""
    found = psutil.Process(served.process.pid).children(recursive=True)
    return [child for child in found if child.status() != psutil.STATUS_ZOMBIE]


def workers(served: Served) -> list[psutil.Process]:
    """The workers of a group: children that serve."""
    found = psutil.Process(served.process.pid).children()
    return [
        child for child in found if child.status() != psutil.STATUS_ZOMBIE and "serinus" in " ".join(child.cmdline())
    ]


@contextlib.contextmanager
def local(
    folder: Path,
    *,
    transformer: bool = False,
    environment: dict[str, str] | None = None,
    python: Sequence[str] = (sys.executable,),
    chatty: bool = False,
) -> Iterator[tuple[Up, Observed, Watch]]:
    """Run `serinus up` with the service `fraud` and, beside it, another; yields as `server` does."""
    words = ("--chatty",) if chatty else ()
    (folder / "isvc.yaml").write_text(manifest(*words, transformer=("--tag=t",) if transformer else ()))
    (folder / "neighbour.yaml").write_text(manifest(name=NEIGHBOUR))
    with up(folder, "isvc.yaml", "neighbour.yaml", env=environment, python=python) as running:
        port = int(running.gateway.rpartition(":")[2])
        observed = Observed()
        host, other = "fraud.default.localhost", f"{NEIGHBOUR}.default.localhost"
        watch = Watch(
            observed,
            lambda: ask(port, f"/v2/models/{NEIGHBOUR}/infer", b"{}", host=other, timeout_s=5),
            # The tiny server answers readiness alone; the gateway's own life is what `live` is about.
            lambda probe: ask(port, "/v2/health/ready", host=other if probe == "live" else host, timeout_s=5),
        )
        yield running, observed, watch
