"""The manifests of a supervisor: what was given, with which options, what of it is in force, and what was refused.

Theory of operation. A path keeps the options that it was given with; a later `serinus up` with options changes those of its paths. What is in
force of each object is kept, because KServe's webhooks judge an update against it. A path whose newest state was refused stays in `refused` until
it is read without errors.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...errors import ConfigError
from ...manifests.documents import Document
from ...manifests.problems import Problem
from ..plan.deployment_plan import DOMAINS, PlanOptions
from ..plan.plan_loader import Loaded, fingerprint, load

__all__ = ["AppliedManifests", "ManifestsRefused", "PathOptions"]

_Key = tuple[str, str, str]


class ManifestsRefused(ConfigError):
    """Manifests with errors; `found` are the problems."""

    def __init__(self, found: Sequence[Problem]) -> None:
        super().__init__([str(problem) for problem in found])
        self.found = tuple(found)


@dataclass(frozen=True, slots=True)
class PathOptions:
    """What one path was given with."""

    plan: PlanOptions
    runtimes: tuple[Path, ...]
    watch: bool

    def changed(self, given: Mapping[str, Any]) -> PathOptions:
        """These options with those of a later `serinus up`, as JSON values by name; mappings and lists gain what is new.

        Raises:
            ConfigError: a name that is none.
        """
        plan, runtimes, watch = self.plan, self.runtimes, self.watch
        for name, value in given.items():
            if name == "image":
                plan = replace(plan, images={**plan.images, **{key: tuple(words) for key, words in value.items()}})
            elif name == "mount":
                plan = replace(plan, mounts={**plan.mounts, **value})
            elif name == "replicas":
                plan = replace(plan, max_replicas=int(value))
            elif name == "domain":
                plan = replace(plan, domains=tuple(dict.fromkeys((*value, *plan.domains, *DOMAINS))))
            elif name == "propagate_header":
                plan = replace(plan, propagate=tuple(dict.fromkeys((*plan.propagate, *value))))
            elif name == "storage_config":
                plan = replace(plan, storage_config=dict(value))
            elif name == "runtimes":
                runtimes = tuple(dict.fromkeys((*runtimes, *map(Path, value))))
            elif name == "watch":
                watch = bool(value)
            else:
                raise ConfigError(f"{name}: no option that a running supervisor takes")
        return PathOptions(plan, runtimes, watch)


class AppliedManifests:
    """Paths of manifests, in the order in which they were given first.

    Args:
        options: of paths that are given without any.
    """

    def __init__(self, options: PathOptions) -> None:
        self._default = options
        self._paths: dict[Path, Path] = {}
        """As they were written first, by what they are in full."""
        self._options: dict[Path, PathOptions] = {}
        self._prints: dict[Path, Any] = {}
        self._in_force: dict[_Key, Document] = {}
        self.refused: dict[Path, tuple[str, ...]] = {}
        """Problems of what could not be applied, by path."""

    def read(
        self, paths: Iterable[Path], given: Mapping[str, Any] | None = None
    ) -> list[tuple[Path, Loaded, PathOptions]]:
        """Read paths that are to be applied one after another, each judged against what is in force then.

        Args:
            paths: files and folders.
            given: options for them, as `PathOptions.changed` takes them; None: those that they have.

        Raises:
            ManifestsRefused: with every problem of the first path that has any; nothing is in force of it.
        """
        in_force, found = dict(self._in_force), []
        asked = {path.resolve(): path for path in paths}
        known = {**asked, **self._paths}
        for full, path in asked.items():
            options = self._options.get(full, self._default).changed(given or {})
            written = self._paths.get(full, path)
            beside = [other for key, other in known.items() if key != full]
            self._prints[full] = fingerprint(written)
            try:
                loaded = load(written, options.runtimes, options.plan, beside, previous=tuple(in_force.values()))
            except ConfigError as error:
                self._refuse(full, error.problems)
                raise
            if loaded.errors:
                self._refuse(full, [str(problem) for problem in loaded.errors])
                raise ManifestsRefused(loaded.errors)
            in_force.update((_key(document), document) for document in loaded.documents)
            found.append((written, loaded, options))
        return found

    def _refuse(self, full: Path, problems: Sequence[str]) -> None:
        if full in self._paths:  # one that was never in force is its giver's matter alone
            self.refused[self._paths[full]] = tuple(problems)

    def take(self, path: Path, loaded: Loaded, options: PathOptions) -> None:
        """Note that what was read is in force now."""
        full = path.resolve()
        self._paths.setdefault(full, path)
        self._options[full] = options
        self._in_force.update((_key(document), document) for document in loaded.documents)
        self.refused.pop(self._paths[full], None)

    def forget(self, namespace: str, name: str) -> None:
        """Note that a service was taken away: what comes under its name next is no update."""
        for kind in ("InferenceService", "InferenceGraph"):
            self._in_force.pop((kind, namespace, name), None)

    def watched(self) -> list[Path]:
        """Paths whose changes are to be applied."""
        return [path for full, path in self._paths.items() if self._options[full].watch]

    def has_changed(self, path: Path) -> bool:
        """Whether files of a path are others than when it was last read."""
        return fingerprint(path) != self._prints.get(path.resolve())


def _key(document: Document) -> _Key:
    return document.kind, document.namespace, document.name
