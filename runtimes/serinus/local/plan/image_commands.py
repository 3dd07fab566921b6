"""Which command an image stands for on a machine without containers.

An image whose last path component is the name of one of our app folders runs from that folder; `A-B` is the fused image: model A
with transformer B around it. A container's `command` is run as it is. An image of a class of one's own is that class, where the
service's annotation names its file. Anything else is mapped by `--image NAME=COMMAND`.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ...manifests.containers import Container
from ...manifests.inference_service import InferenceService
from ...manifests.problems import Problems
from ...manifests.serving_runtimes import app_class, image_name

__all__ = ["LOCAL_CLASS", "Command", "local_class", "parse_image_options", "resolve_image"]

LOCAL_CLASS = "serinus.dev/local-class"
"""Annotation of an InferenceService: what `serinus up` serves in the place of its predictor's image, `file.py:Class` relative to the
manifest, or `package:Class`."""
_SERVE = (sys.executable, "-m", "serinus.cli", "serve")


@dataclass(frozen=True, slots=True)
class Command:
    """What to run: words before the container's args, and variables that say which app it is."""

    words: tuple[str, ...]
    env: Mapping[str, str]
    ours: bool
    """Whether it is `serinus serve`, whose settings are known."""


def parse_image_options(options: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Read `--image NAME=COMMAND` options.

    Raises:
        ValueError: an option without `=` or without a command.
    """
    table = {}
    for option in options:
        name, equals, command = option.partition("=")
        words = tuple(shlex.split(command))
        if not equals or not name or not words:
            raise ValueError(f"--image {option}: expected NAME=COMMAND, such as kserve/xgbserver='python -m xgbserver'")
        table[name] = words
    return table


def local_class(service: InferenceService) -> Command | None:
    """The command for the class that a service's annotation names; None: it names none."""
    named = service.annotations.get(LOCAL_CLASS)
    if not named:
        return None
    path = named
    if named.partition(":")[0].endswith(".py"):
        place = service.document.place(("metadata", "annotations", LOCAL_CLASS))
        path = os.path.join(os.path.dirname(place.file), named)
    return Command(_SERVE, {"SERINUS_CLASS": path}, ours=True)


def resolve_image(
    container: Container,
    mapped: Mapping[str, Sequence[str]],
    problems: Problems,
    *,
    find_app: Callable[[str], str | None] = app_class,
) -> Command | None:
    """The command of a container; None, and a problem that says how to mend it, where none is known.

    Args:
        container: its `command` wins over its image, as in Kubernetes.
        mapped: words by image, as written, without its tag, or by its last component.
        problems: collects what cannot be resolved.
        find_app: looks up an app folder.
    """
    image = container.image
    name = image_name(image)
    base = image.split("@", 1)[0]
    untagged = base[: -len(base.rsplit(":", 1)[-1]) - 1] if ":" in base.rsplit("/", 1)[-1] else base
    for known in (image, untagged, name):
        if known in mapped:
            return Command(tuple(mapped[known]), {}, ours=False)
    if container.command:
        words = container.command
        if words[0] in {"python", "python3"}:
            words = (sys.executable, *words[1:])
        ours = len(words) > 1 and words[0] == "serinus" and words[1] == "serve"
        return Command((sys.executable, "-m", "serinus.cli", *words[1:]) if ours else words, {}, ours=ours)
    model, dash, transformer = name.partition("-")
    if find_app(name):
        return Command(_SERVE, {"SERINUS_CLASS": name}, ours=True)
    if dash and find_app(model) and find_app(transformer):
        return Command(_SERVE, {"SERINUS_CLASS": model, "SERINUS_TRANSFORMER": transformer}, ours=True)
    if not image:
        problems.error_at(container.source, ("image",), f"container {container.name} has no image", "add image")
    else:
        problems.error_at(
            container.source,
            ("image",),
            f"{image} is no image of this project ({name} is no installed app folder), and serinus up runs no containers",
            f"give its command with --image {untagged}='COMMAND', set command: in the container, or name the class that it serves in the "
            f"service's annotation {LOCAL_CLASS}: file.py:Class",
        )
    return None
