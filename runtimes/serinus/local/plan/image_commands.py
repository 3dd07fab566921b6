"""Which command an image stands for on a machine without containers.

An image whose last path component is the name of one of our app folders runs from that folder; `A-B` is the fused image: model A
with transformer B around it. A container's `command` is run as it is. Anything else is mapped by `--image NAME=COMMAND`.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ...manifests.containers import Container
from ...manifests.problems import Problems
from ...manifests.serving_runtimes import app_class, image_name

__all__ = ["Command", "parse_image_options", "resolve_image"]


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
    serve = (sys.executable, "-m", "serinus.cli", "serve")
    if find_app(name):
        return Command(serve, {"SERINUS_CLASS": name}, ours=True)
    if dash and find_app(model) and find_app(transformer):
        return Command(serve, {"SERINUS_CLASS": model, "SERINUS_TRANSFORMER": transformer}, ours=True)
    if not image:
        problems.error_at(container.source, ("image",), f"container {container.name} has no image", "add image")
    else:
        problems.error_at(
            container.source,
            ("image",),
            f"{image} is no image of this project ({name} is no installed app folder), and serinus up runs no containers",
            f"give its command with --image {untagged}='COMMAND', or set command: in the container",
        )
    return None
