"""The models of one process by name and version: which are there, which answer, and who is found under a name.

Each version of each name has an `Entry` with a state of Triton's model repository extension: LOADING, READY, UNLOADING or UNAVAILABLE,
and a reason where there is one. Entries are changed on the event loop's thread only, by the `Registry`.

*The default version*, for requests that name none, is the highest numeric one that is READY; versions that are no
number come after all numbers, in order of text. An unversioned model is also found as version 1, as which its statistics tell of it.

*A model behind another one* (the predictor of a pipeline in one process) belongs to that one and has no entry. It is found under its own
name where an operator looks: statistics, metrics, readiness, metadata. It is not in the index, and requests for it are refused, since they
would go past the transformer, unless `expose_behind` opens it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Literal

from ..errors import NotFound, NotReady
from ..model import Family
from ..settings import UNVERSIONED, ModelSettings
from .servables.servable import Servable
from .telemetry.cuda_memory import LoadedFramework

__all__ = ["Entry", "ModelTable", "State", "all_behind", "rank"]

_GPU_FAMILY = "serinus_cuda_memory_reserved_bytes"
_log = logging.getLogger("serinus.registry")

State = Literal["LOADING", "READY", "UNLOADING", "UNAVAILABLE"]


@dataclass(slots=True, eq=False)
class Entry:
    """One version of one model."""

    settings: ModelSettings
    own: ModelSettings
    """Without what a load request's `config` changed."""
    state: State = "LOADING"
    reason: str = ""
    unloaded: bool = False
    """Taken away on purpose: requests for it are NotFound, as for a model that never was, until it is loaded again."""
    loaded: bool = False
    """It has been, since the start."""
    broken: bool = False
    """Its files could not be read at start: nothing is known but the reason."""
    servable: Servable | None = None
    """Answers requests while it is there, also while a newer load of the same version is under way."""


class ModelTable:
    """Names and versions to models.

    Args:
        expose_behind: clients may call the models behind others.
        index: names in the model repository, loaded or not; None: there is no repository.
    """

    def __init__(self, *, expose_behind: bool = False, index: Callable[[], Iterable[str]] | None = None) -> None:
        self.defaults: dict[str, Servable] = {}
        """Name to the served default version; what the hot path reads."""
        self._expose_behind = expose_behind
        self._index = index
        self._framework = LoadedFramework(os.environ.get("SERINUS_WORKER", "0"))
        """Tells of GPUs where a model uses them and does not tell itself: a class of somebody's with PyTorch."""
        self._entries: dict[str, dict[str, Entry]] = {}

    def names(self) -> list[str]:
        """Names that are or were registered, and those of models behind them."""
        return [*self._entries, *dict.fromkeys(servable.known_as for servable in self._behind())]

    def entry(self, name: str, version: str = "") -> Entry:
        """Find a version; an empty one is the default.

        Raises:
            NotFound: no such name or version; says which there are.
        """
        versions = self._entries.get(name)
        if versions is None:
            known = ", ".join(f"'{known}'" for known in sorted(self._entries)[:8]) or "none"
            raise NotFound(f"model '{name}' is not known; the models here are {known}")
        if version:
            entry = versions.get("" if version == UNVERSIONED and version not in versions else version)
            if entry is None:
                have = (
                    ", ".join(f"'{known}'" for known in sorted(versions, key=rank) if known)
                    or f"none: it is not versioned, and found without one or as '{UNVERSIONED}'"
                )
                raise NotFound(f"model '{name}' has no version '{version}'; its versions are {have}")
            return entry
        ready = [known for known in versions if versions[known].servable is not None]
        return versions[max(ready or versions, key=rank)]

    def find(self, name: str, version: str = "") -> Servable:
        """Find the model that answers a request.

        Raises:
            NotFound: no such name or version, or it was unloaded, or it stands behind another one.
            NotReady: it does not answer now; says why.
        """
        if not version:
            servable = self.defaults.get(name)
            if servable is not None:
                return servable
        if name not in self._entries:
            behind = self._find_behind(name, version)
            if behind is not None and self._expose_behind:
                return behind
            if behind is not None:
                raise NotFound(
                    f"model '{name}' stands behind model '{behind.name}' and is not called past its transformer; "
                    f"send to '{behind.name}', or start with --expose_predictor"
                )
        entry = self.entry(name, version)
        if entry.servable is None:
            state = {"LOADING": "is loading", "UNLOADING": "is being unloaded"}.get(entry.state, "is not loaded")
            if entry.unloaded and entry.state == "UNAVAILABLE":
                raise NotFound(
                    f"model '{name}'{f' version {version}' if version else ''} is not loaded ({entry.reason}); load it first"
                )
            reason = f": {entry.reason}" if entry.reason else ""
            raise NotReady(f"model '{name}'{f' version {version}' if version else ''} {state}{reason}")
        return entry.servable

    def current(self, name: str, version: str = "") -> Servable | None:
        """Find a model to tell of; None: it is not loaded now.

        Raises:
            NotFound: no such name or version.
        """
        if name not in self._entries:
            behind = self._find_behind(name, version)
            if behind is not None:
                return behind
        return self.entry(name, version).servable

    def look_up(self, name: str, version: str = "") -> Servable:
        """Find a model to tell of, also one that stands behind another.

        Raises:
            NotFound: no such name or version, or it was unloaded.
            NotReady: it does not answer now; says why.
        """
        if name not in self._entries:
            behind = self._find_behind(name, version)
            if behind is not None:
                return behind
        return self.find(name, version)

    def labelled_version(self, name: str, label: str) -> str:
        """Find the version that a label stands for.

        Raises:
            NotFound: no such name or label; says which there are.
        """
        labels = self.entry(name).settings.extra.get("version_labels") or {}
        if label not in labels:
            known = ", ".join(f"'{one}'" for one in sorted(labels)) or "none; extra setting 'version_labels' gives some"
            raise NotFound(f"model '{name}' has no version labelled '{label}'; its labels are {known}")
        return str(labels[label])

    def versions(self, name: str) -> tuple[str, ...]:
        """Give the versions of a name that answer requests, lowest first; empty where it is not versioned."""
        if name not in self._entries:
            return tuple(
                sorted((one.version for one in self._behind() if one.known_as == name and one.version), key=rank)
            )
        entries = self._entries.get(name, {})
        return tuple(sorted((v for v, entry in entries.items() if v and entry.servable is not None), key=rank))

    def servables(self) -> list[Servable]:
        """Every model that answers requests, and those behind them."""
        return [*self._at_the_front(), *self._behind()]

    def _at_the_front(self) -> Iterable[Servable]:
        return (entry.servable for versions in self._entries.values() for entry in versions.values() if entry.servable)

    def _behind(self) -> Iterable[Servable]:
        for servable in self._at_the_front():
            yield from all_behind(servable)

    def _find_behind(self, name: str, version: str) -> Servable | None:
        found = [one for one in self._behind() if one.known_as == name and version in ("", one.version or UNVERSIONED)]
        return max(found, key=lambda one: rank(one.version)) if found else None

    def known_versions(self, name: str) -> tuple[str, ...]:
        """Give every version of a name, whatever its state, lowest first; ("",) where it is not versioned."""
        if name not in self._entries:
            return tuple(sorted({one.version for one in self._behind() if one.known_as == name}, key=rank))
        return tuple(sorted(self._entries[name], key=rank))

    def is_unloaded(self, name: str, version: str) -> bool:
        """Whether a version was loaded once, and unloaded on purpose since."""
        entry = self._entries.get(name, {}).get(version)
        return entry is not None and entry.unloaded

    def add_broken(self, name: str, reason: str) -> None:
        """List a name of which nothing is known but why it cannot be loaded; a load request reads it again."""
        settings = ModelSettings(name=name)
        self._entries.setdefault(name, {})[""] = Entry(settings, settings, "UNAVAILABLE", reason, broken=True)

    def add_unloaded(self, settings: ModelSettings) -> None:
        """List a version that was unloaded on purpose, before this process began."""
        entry = Entry(settings, settings, "UNAVAILABLE", "unloaded", unloaded=True)
        self._entries.setdefault(settings.name, {}).setdefault(settings.version, entry)

    def forget_broken(self, name: str) -> None:
        """Let the settings that could be read now take the place of the reason why they could not."""
        versions = self._entries.get(name, {})
        if "" in versions and versions[""].broken:
            del versions[""]

    def index(self, *, ready_only: bool = False) -> list[dict[str, str]]:
        """Describe every version known, and every name in the repository (extension_model_repository.md, "Index").

        What was unloaded, and is in the repository no more, cannot be loaded again and is not told of.
        """
        rows = []
        there = None if self._index is None or ready_only else set(self._index())
        for name, versions in self._entries.items():
            gone = there is not None and name not in there
            for version, entry in sorted(versions.items(), key=lambda item: rank(item[0])):
                if gone and entry.unloaded and entry.state == "UNAVAILABLE":
                    continue
                if not ready_only or entry.servable is not None:
                    row = {"name": name, "state": entry.state, "reason": entry.reason}
                    rows.append({"name": name, "version": version, **row} if version else row)
        if there is not None:
            rows += [
                {"name": name, "state": "UNAVAILABLE", "reason": ""} for name in sorted(there.difference(self._entries))
            ]
        return rows

    def choose_default(self, name: str) -> None:
        """Find again which version of a name answers requests that name none."""
        ready = {
            version: entry.servable for version, entry in self._entries[name].items() if entry.servable is not None
        }
        if ready:
            self.defaults[name] = ready[max(ready, key=rank)]
        else:
            self.defaults.pop(name, None)

    def _families(self) -> Iterable[Family]:
        """Metrics of the models' own; what several tell alike counts once."""
        found: dict[str, tuple[Family, dict[tuple[tuple[str, str], ...], float]]] = {}
        for servable in self.servables():
            try:
                told = list(servable.model.metrics())
            except Exception:  # noqa: BLE001 # an author's code must not cost the page
                _log.exception("model '%s' cannot tell its metrics", servable.name)
                continue
            for family in told:
                samples = found.setdefault(family.name, (family, {}))[1]
                samples.update({tuple(sorted(labels.items())): value for labels, value in family.samples})
        if _GPU_FAMILY not in found:
            for family in self._framework.metrics():
                samples = found.setdefault(family.name, (family, {}))[1]
                samples.update({tuple(sorted(labels.items())): value for labels, value in family.samples})
        for family, samples in found.values():
            yield replace(family, samples=[(dict(labels), value) for labels, value in samples.items()])
        digests = [
            ({"model": one.known_as, "version": one.version, "digest": one.model.settings.digest}, 1.0)
            for one in self.servables()
            if one.model.settings.digest
        ]
        if digests:
            yield Family(
                "serinus_model_digest_info",
                "1: the model whose signature was checked, and what it signs.",
                "gauge",
                digests,
            )

    def _gauges(self) -> Iterable[tuple[str, str, dict[str, float]]]:
        for name, versions in self._entries.items():
            for version, entry in versions.items():
                yield name, version, _gauges_of(entry.servable)
        for servable in self._behind():
            yield servable.known_as, servable.version, _gauges_of(servable)


def _gauges_of(servable: Servable | None) -> dict[str, float]:
    batcher = servable.batcher if servable is not None else None
    return {
        "ready": 1.0 if servable is not None and servable.healthy else 0.0,
        "in_flight": float(batcher.queued + batcher.running) if batcher is not None else 0.0,
        "queued": float(batcher.queued) if batcher is not None else 0.0,
        "queued_rows": float(batcher.queued_rows) if batcher is not None else 0.0,
    }


def all_behind(servable: Servable) -> Iterable[Servable]:
    """Give the models that one stands in front of, and those that they do."""
    for one in servable.behind:
        yield one
        yield from all_behind(one)


def rank(version: str) -> tuple[int, int, str]:
    """Order versions: numbers by value, after them what is no number, as text, so the highest number comes last."""
    return (1, int(version), "") if version.isdecimal() else (0, 0, version)
