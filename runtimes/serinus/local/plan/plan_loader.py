"""From paths to plans: read, check, choose runtimes, plan; all problems together."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...errors import ConfigError
from ...manifests.documents import Document
from ...manifests.graphs.inference_graph import parse_inference_graph
from ...manifests.inference_service import parse_inference_service
from ...manifests.kustomization import kustomization_files
from ...manifests.linter import check_documents
from ...manifests.problems import Problem, Problems
from ...manifests.reading import read_documents
from ...manifests.rules.update_rules import check_updates
from ...manifests.serving_runtimes import (
    BUILT_IN,
    BY_NAME,
    app_class,
    built_in_runtimes,
    kserve_runtimes,
    parse_runtime,
)
from ...small_file import is_there
from .container_environment import config_data
from .deployment_plan import PlanOptions, ServicePlan
from .graph_planner import GraphPlanner
from .planner import Planner

__all__ = ["Loaded", "fingerprint", "load"]

_RUN = {"InferenceService", "InferenceGraph"}


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a path holds; `services` is empty where there are errors."""

    services: tuple[ServicePlan, ...]
    problems: tuple[Problem, ...]
    documents: tuple[Document, ...] = ()
    """What was read, for the next version of it to be held against."""

    @property
    def errors(self) -> tuple[Problem, ...]:
        """The problems that forbid a start."""
        return tuple(problem for problem in self.problems if problem.severity == "error")


def load(
    path: Path,
    runtimes: Sequence[Path],
    options: PlanOptions,
    beside: Sequence[Path] = (),
    *,
    previous: Sequence[Document] = (),
) -> Loaded:
    """Plan every InferenceService and InferenceGraph of one path.

    Args:
        path: file or folder.
        runtimes: files or folders with ServingRuntimes, and perhaps ConfigMaps and Secrets; the word `kserve` (where no file is called so)
            stands for KServe's own runtimes, served by our images.
        options: the user's.
        beside: other paths that are run; a graph's steps may name their services, too.
        previous: objects that are in force; KServe refuses some changes of them.
    """
    problems = Problems()
    documents = read_documents([path], problems)
    named = [runtime for runtime in runtimes if not _is_kserve(runtime)]
    others = [document for document in read_documents(named, problems) if not _is_run(document)]
    check_documents([*documents, *others], problems)
    check_updates(previous, documents, problems)
    _one_of_each_name(documents, problems)
    if problems.errors:
        return Loaded((), problems.all)
    known = [
        parse_runtime(document)
        for document in (*documents, *others)
        if document.kind in {"ServingRuntime", "ClusterServingRuntime"} and _in_kserves_group(document)
    ]
    installed = [name for name in (*BUILT_IN, *BY_NAME) if app_class(name)]
    if any(map(_is_kserve, runtimes)):
        known += kserve_runtimes(installed)
    ours = built_in_runtimes(installed)
    data = config_data([*documents, *others])
    planner = Planner(known, ours, data, options, problems)
    run = list(filter(_is_run, documents))
    services = [parse_inference_service(document) for document in run if document.kind == "InferenceService"]
    graphs = [parse_inference_graph(document) for document in run if document.kind == "InferenceGraph"]
    # Services first: a graph is ready when its router is, and serves as soon as they are.
    plans = [planner.plan(service) for service in services]
    if graphs:
        neighbours = [each for each in read_documents(beside, Problems()) if _is_run(each) and _is_admitted(each)]
        near = [parse_inference_service(each) for each in neighbours if each.kind == "InferenceService"]
        named_graphs = [(each.namespace, each.name) for each in (*run, *neighbours) if each.kind == "InferenceGraph"]
        by_name = {(service.namespace, service.name): service for service in (*near, *services)}
        graph_planner = GraphPlanner(by_name, named_graphs, [*known, *ours], data, options, problems)
        plans += [graph_planner.plan(graph) for graph in graphs]
    if not plans and not problems.errors:
        message = "no InferenceService or InferenceGraph is in it"
        problems.extend([Problem(str(path), 1, "kind", message, "give a path that holds one")])
    if problems.errors:
        return Loaded((), problems.all)
    return Loaded(tuple(plan for plan in plans if plan is not None), problems.all, tuple(documents))


def _is_run(document: Document) -> bool:
    """Whether it is run here; kinds of these names that other groups may have are somebody else's."""
    return document.kind in _RUN and _in_kserves_group(document)


def _is_admitted(document: Document) -> bool:
    problems = Problems()
    check_documents([document], problems)
    return not problems.errors


def _in_kserves_group(document: Document) -> bool:
    return document.api_version.partition("/")[0] == "serving.kserve.io"


def _one_of_each_name(documents: Sequence[Document], problems: Problems) -> None:
    """Of two services with one name a cluster keeps the second; a service and a graph fight for one host. Here nobody could say which is meant."""
    seen: dict[tuple[str, str], Document] = {}
    for document in documents:
        if _is_run(document):
            first = seen.setdefault((document.namespace, document.name), document)
            if first is not document:
                message = f"{document.kind} {document.name} is also at {first.place(('metadata', 'name'))}"
                problems.error(document, ("metadata", "name"), message, "rename or remove one", layer="controller")


def _is_kserve(runtime: Path) -> bool:
    return str(runtime) == "kserve" and not is_there(runtime)


def fingerprint(path: Path) -> tuple[tuple[str, int, int], ...]:
    """Names, times and sizes of the files that a path's manifests may come from; it changes when one of them does.

    Bases and components that a kustomization names lie beside its folder.
    """
    files = {path} if path.is_file() else set[Path]()
    if path.is_dir():
        files = {file for file in path.rglob("*") if file.suffix in {".yaml", ".yml"} or file.name == "Kustomization"}
        below = path.resolve()
        # Of a kustomization that cannot be read the change that mends it is seen in any case.
        with contextlib.suppress(ConfigError):
            files |= {file for file in kustomization_files(path) if not file.resolve().is_relative_to(below)}
    found = []
    for file in sorted(files):
        try:
            stat = file.stat()
        except OSError:
            continue
        found.append((str(file), stat.st_mtime_ns, stat.st_size))
    return tuple(found)
