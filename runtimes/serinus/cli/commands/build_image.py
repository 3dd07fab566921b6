"""`serinus build`: an image of a model or a class of one's own, run and asked once."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console

from ... import __version__
from ...errors import ConfigError
from ...images.container_engine import ContainerEngine, find_engine
from ...images.dockerfile import Recipe, check_arguments, image_name, write_context, write_dockerfile
from ...images.first_answer import PORT, FirstAnswer, ask_image
from ...images.image_source import find_source
from ...images.package_wheel import choose_wheel
from ..tables import make_console

__all__ = ["build"]

_PASSED_ON: Final = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_TRUSTED_HOST")
"""Variables of this shell that say where pip finds packages; a build knows none of them by itself."""
_MOST_VALUES: Final = 8
_MEGABYTE: Final = 1e6


def build(
    path: Annotated[Path, typer.Argument(help="A folder, a model file or a Python module.", show_default=False)],
    *,
    tag: Annotated[
        str, typer.Option("--tag", "-t", help="The image's name; default: the model's, with tag 1.", show_default=False)
    ] = "",
    implementation: Annotated[
        str, typer.Option("--class", help="module:Class of yours; default: found in the folder.", show_default=False)
    ] = "",
    requirements: Annotated[
        Path | None,
        typer.Option(help="What pip installs too; default: requirements.txt of the folder.", show_default=False),
    ] = None,
    base: Annotated[
        str,
        typer.Option(
            help="An image that has serinus, such as serinus_base:0.1.0; default: Python's and the wheel.",
            show_default=False,
        ),
    ] = "",
    python_image: Annotated[str, typer.Option(help="The image of Python to start from, without --base.")] = (
        f"python:{sys.version_info[0]}.{sys.version_info[1]}-slim"
    ),
    wheel: Annotated[
        Path | None,
        typer.Option(
            help="Wheel of serinus for the image; default: the installed package, packed.", show_default=False
        ),
    ] = None,
    name: Annotated[
        str,
        typer.Option(help="The model's name in URLs; default: its settings', else the folder's.", show_default=False),
    ] = "",
    allow_implementation: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-implementation",
            "--allow_implementation",
            help="As serinus serve's, for the image: pickle, mlflow.pyfunc, torchserve, a pattern of classes; repeatable.",
        ),
    ] = None,
    build_arg: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=VALUE for the build; repeatable. This shell's PIP_INDEX_URL and the like go by themselves."
        ),
    ] = None,
    engine: Annotated[
        str,
        typer.Option(
            help="docker, podman or the like; default: the first that answers.", envvar="DOCKER", show_default=False
        ),
    ] = "",
    run: Annotated[bool, typer.Option(help="Run the built image and ask it the model's sample request.")] = True,
    timeout: Annotated[float, typer.Option(help="Seconds to wait until the container is ready.", min=1)] = 120.0,
    print_: Annotated[bool, typer.Option("--print", help="Print the Dockerfile, and build nothing.")] = False,
    context: Annotated[
        Path | None,
        typer.Option(
            help="Write the Dockerfile and its files into this new folder, and build nothing.", show_default=False
        ),
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show all that the engine says.")] = False,
) -> None:
    """Build an image of a model or a class of your own, run it without rights, and ask it the model's sample request.

    The sample is request.json beside the model (V2 or V1), or a row made up by the model's metadata.

        serinus build ./my_model --tag registry.example.com/my_model:1

        serinus build ./my_model --print > Dockerfile

        serinus build model.ubj --base serinus_base:0.1.0 --requirements requirements.txt
    """
    console = make_console()
    source = find_source(path, implementation=implementation, requirements=requirements, name=name)
    given = _arguments(build_arg or [])
    arguments = {**{key: os.environ[key] for key in _PASSED_ON if os.environ.get(key)}, **given}
    check_arguments(tuple(arguments), arguments, base=base)
    tag = tag or f"{image_name(source.name)}:1"
    chosen = find_engine(engine) if not print_ and context is None else None
    with tempfile.TemporaryDirectory(prefix="serinus-build-") as scratch:
        found = None if base else _wheel(wheel, Path(scratch) / "wheel", chosen, only_shown=print_)
        recipe = Recipe(
            source=source,
            base=base,
            python_image=python_image,
            wheel=found.name if found is not None else "",
            arguments=tuple(arguments),
            version=__version__,
            allowed=tuple(allow_implementation or ()),
        )
        if print_:
            typer.echo(write_dockerfile(recipe), nl=False)
            return
        folder = context if context is not None else Path(scratch) / "context"
        dockerfile = write_context(recipe, folder, found)
        if chosen is None:
            console.print(f"{dockerfile}: docker build -t {tag} {folder}", markup=False, emoji=False)
            return
        with _Progress(console, verbose=verbose) as progress:
            chosen.build(folder, tag, arguments, progress.line)
    _show_size(console, chosen, tag, base or python_image)
    if run:
        with console.status(f"starting {tag}"):
            answer = ask_image(chosen, tag, model=source.name, request=source.request, timeout_s=timeout)
        _show_answer(console, answer)
    console.print(f"run it: {chosen.run_line(tag, PORT)}", markup=False, emoji=False, soft_wrap=True)


def _wheel(given: Path | None, folder: Path, engine: ContainerEngine | None, *, only_shown: bool) -> Path:
    """The wheel for the image; where only the Dockerfile is shown, no more than its name is needed."""
    if only_shown and given is None:
        return folder / f"serinus-{__version__}-py3-none-any.whl"
    return choose_wheel(given, folder, engine.architecture if engine is not None else "")


def _arguments(words: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key.isidentifier():
            raise ConfigError(f"--build-arg {word!r}: expected NAME=VALUE")
        found[key] = value
    return found


class _Progress:
    """What the engine says: its steps, the newest line below them on a terminal, all of it where asked for."""

    def __init__(self, console: Console, *, verbose: bool) -> None:
        self._console, self._verbose = console, verbose
        self._status = console.status("building")
        self._update: Callable[[str], None] = lambda line: self._status.update(line[:120].replace("[", r"\["))

    def __enter__(self) -> _Progress:  # noqa: PYI034 # typing.Self comes with Python 3.11
        self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._status.stop()

    def line(self, line: str) -> None:
        """Take a line of the engine's."""
        if self._verbose or line.upper().startswith("STEP ") or (line.startswith("#") and "] " in line and "[" in line):
            self._console.print(line, markup=False, emoji=False, style="" if self._verbose else "dim")
        if line.strip():
            self._update(line)


def _show_size(console: Console, engine: ContainerEngine, tag: str, below: str) -> None:
    whole, under = engine.size_bytes(tag), engine.size_bytes(below)
    over = f", {(whole - under) / _MEGABYTE:.0f} MB of it over {below}" if under else ""
    console.print(f"built {tag}: {whole / _MEGABYTE:.0f} MB{over}", markup=False, emoji=False)


def _show_answer(console: Console, answer: FirstAnswer) -> None:
    console.print(
        f"ready in {answer.ready_s:.1f} s as user 1000, without capabilities, on a read-only file system",
        markup=False,
        emoji=False,
    )
    if not answer.asked:
        console.print(
            "not asked: the model declares no inputs; put a request.json beside it", markup=False, emoji=False
        )
        return
    outputs: Any = answer.answer.get("outputs")
    if not isinstance(outputs, list):
        console.print(f"{answer.asked}: {str(dict(answer.answer))[:400]}", markup=False, emoji=False)
        return
    for output in outputs:
        data = output.get("data") or []
        shown = ", ".join(map(str, data[:_MOST_VALUES])) + (", ..." if len(data) > _MOST_VALUES else "")
        console.print(
            f"{answer.asked}: {output['name']} {output['datatype']} {output['shape']} = {shown}",
            markup=False,
            emoji=False,
        )
