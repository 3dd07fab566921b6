"""Arguments and settings of our own images in manifests, held against what `serinus serve` takes.

A container of one of our images exits at once on a flag that there is not; `kubectl apply` cannot know. Words with a placeholder
(`{{.Name}}`, `$(POD_IP)`) become known in the cluster only, and their values are not judged.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ...errors import ConfigError
from ...manifests.documents import Document, FieldPath
from ...manifests.fields import containers_of, listed, mapping, variables_of
from ...manifests.problems import Problems
from ...manifests.serving_runtimes import app_class, image_name
from .options import parse

__all__ = ["check_serve_arguments"]

_PLACEHOLDER = re.compile(r"\{\{|\$\(")
_RULE = "serve-arguments"


def check_serve_arguments(documents: Iterable[Document], problems: Problems) -> None:
    """Judge the arguments and variables of every container that runs an image of ours.

    Args:
        documents: of any kinds; InferenceServices and runtimes have containers.
        problems: takes the findings: errors of layer `controller` for what ends the process, warnings for what has no effect.
    """
    for document in documents:
        for path, container in _containers(document):
            if _is_ours(container) and not container.get("command"):
                _judge(document, path, container, problems)


def _containers(document: Document) -> Iterator[tuple[FieldPath, Mapping[str, Any]]]:
    spec = mapping(document.value.get("spec"))
    if document.kind in {"ServingRuntime", "ClusterServingRuntime"}:
        yield from containers_of(("spec",), spec)
    elif document.kind == "InferenceService":
        for part in ("predictor", "transformer"):
            yield from containers_of(("spec", part), mapping(spec.get(part)))
        for index, item in enumerate(listed(spec.get("canary"))):
            yield from containers_of(("spec", "canary", index, "predictor"), mapping(mapping(item).get("predictor")))


def _is_ours(container: Mapping[str, Any]) -> bool:
    image = container.get("image")
    parts = image_name(image).split("-") if isinstance(image, str) else []
    return bool(parts) and all(app_class(part) for part in parts)


def _judge(document: Document, path: FieldPath, container: Mapping[str, Any], problems: Problems) -> None:
    words = [(index, word) for index, word in enumerate(listed(container.get("args"))) if isinstance(word, str)]
    for place, said, ends in _said(words):
        note = problems.error if ends else problems.warn
        message, _, mend = said.partition(": ") if ": " in said else (said, "", "see serinus serve --help")
        note(document, (*path, "args", place), message, mend, rule=_RULE, layer="controller" if ends else "ignored")
    environment = {
        str(variable["name"]): (at, str(variable.get("value", "")))
        for at, variable in variables_of(path, container)
        if isinstance(variable.get("name"), str) and "valueFrom" not in variable
    }
    for name, (at, value) in environment.items():
        if not _PLACEHOLDER.search(value):
            try:
                parse([], {name: value})
            except ConfigError as error:
                for said in error.problems:
                    problems.error(document, at, said, "see serinus serve --help", rule=_RULE, layer="controller")


def _said(words: Sequence[tuple[int, str]]) -> Iterator[tuple[int, str, bool]]:
    """For each flag with its value: its place, what `serve` says of it, and whether it ends the process."""
    position = 0
    while position < len(words):
        index, word = words[position]
        position += 1
        if not word.startswith("-"):
            continue
        taken = [word]
        if "=" not in word and position < len(words) and not words[position][1].startswith("-"):
            taken.append(words[position][1])
            position += 1
        if any(_PLACEHOLDER.search(part) for part in taken):
            taken = [word.partition("=")[0]] if _PLACEHOLDER.search(word.partition("=")[0]) is None else []
            if not taken or _is_known(taken[0]):
                continue
        try:
            yield from ((index, said, False) for said in parse(taken, {}).warnings)
        except ConfigError as error:
            yield from ((index, said, True) for said in error.problems)


def _is_known(flag: str) -> bool:
    """Whether there is such a flag, whatever its value."""
    try:
        parse([flag], {})
    except ConfigError as error:
        return not any("is not a flag" in said for said in error.problems)
    return True
