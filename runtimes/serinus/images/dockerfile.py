"""The Dockerfile of a model or class of one's own, and the folder that it is built from.

Two forms. From an image that has serinus (`serinus_base` or a runtime's) it adds requirements, code and model. Without one it starts from
a plain image of Python and installs the package from its wheel: in a stage of its own, so that where packages came from is not in the
image. Both are plain Dockerfiles without BuildKit's extensions: Docker's classic builder, BuildKit, Podman and Buildah take them.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ..artifacts import leads_out
from ..errors import ConfigError
from ..small_file import read_text
from .image_source import ImageSource
from .left_out import SECRET_HEAD_BYTES, LeftOut, check_no_secret, check_requirements

__all__ = ["Recipe", "check_arguments", "image_name", "write_context", "write_dockerfile"]

_TORCH_FOR_CPUS: Final = "https://download.pytorch.org/whl/cpu"
"""PyTorch's own index of builds without CUDA (pytorch.org, "Start locally"); the default index's build for Linux brings gigabytes of it."""
_WITH_TORCH: Final = frozenset({"torch_server", "ensemble_server"})
_WITH_OPENMP: Final = frozenset({"lightgbm_server", "classic_server", "mlflow_server"})
"""LightGBM's wheel takes OpenMP's library from the system, and a slim one has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How an image is made."""

    source: ImageSource
    base: str = ""
    """An image that has serinus; empty: a plain one of Python, and the wheel."""
    python_image: str = "python:3.11-slim"
    """The plain one."""
    wheel: str = ""
    """File name of the package's wheel in the context; with `base` none."""
    arguments: tuple[str, ...] = ()
    """Names of build arguments that the step which installs takes (PIP_INDEX_URL and the like)."""
    version: str = ""
    """Of serinus, for a label."""
    allowed: tuple[str, ...] = ()
    """Patterns of `serinus serve --allow_implementation`: code that the model's own files may choose in the image."""


def write_dockerfile(recipe: Recipe) -> str:
    """The text of the Dockerfile; paths are those of `write_context`."""
    source = recipe.source
    lines = _from_base(recipe) if recipe.base else _from_python(recipe)
    if source.code:
        lines.append("COPY --chown=1000:1000 app /app/")
    if source.model:
        lines.append("# In a cluster KServe puts the model of storageUri here.")
        lines.append("COPY --chown=1000:1000 model /mnt/models/")
    if source.implementation:
        lines.append(f"ENV SERINUS_CLASS={_quoted(source.implementation)}")
    if recipe.allowed:
        lines.append(f"ENV SERINUS_ALLOW_IMPLEMENTATION={_quoted(','.join(recipe.allowed))}")
    # Not SERINUS_MODEL_NAME, which would win over what a pod is given.
    lines.append(f"ENV INFERENCE_SERVICE_NAME={_quoted(source.name)}")
    lines.append(
        f"LABEL org.opencontainers.image.title={_quoted(source.name)} dev.serinus.version={_quoted(recipe.version)}"
    )
    if not recipe.base:
        lines += ["USER 1000:1000", "EXPOSE 8080 8081", 'ENTRYPOINT ["serinus", "serve"]']
    return "\n".join(["# Written by `serinus build`.", *lines]) + "\n"


def _from_base(recipe: Recipe) -> list[str]:
    lines = [f"FROM {recipe.base}", "WORKDIR /app"]
    if recipe.source.requirements is not None:
        lines += [
            *(f"ARG {name}=" for name in recipe.arguments),
            "COPY requirements.txt ./",
            "RUN pip install -r requirements.txt",
        ]
    return lines


def _from_python(recipe: Recipe) -> list[str]:
    extras = ("serve", *recipe.source.extras)
    # As wheels write them (PyPA, "Core metadata"): pip before 23.3 finds no other spelling, and leaves the extra out with a warning.
    named = ",".join(extras).replace("_", "-")
    more = f" --extra-index-url {_TORCH_FOR_CPUS}" if _WITH_TORCH & {*extras} else ""
    lines = [
        f"FROM {recipe.python_image} AS packages",
        *(f"ARG {name}=" for name in recipe.arguments),
        "ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore PATH=/opt/serinus/bin:$PATH",
        "RUN python -m venv /opt/serinus",
        f"COPY {recipe.wheel} /tmp/",
        f'RUN pip install{more} "/tmp/{recipe.wheel}[{named}]"',
    ]
    if _WITH_OPENMP & {*extras}:
        lines.append(
            "RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends libgomp1 >/dev/null"
            " && cp -L /usr/lib/*/libgomp.so.1 /opt/serinus/lib/"
        )
    if recipe.source.requirements is not None:
        lines += ["COPY requirements.txt /tmp/", "RUN pip install -r /tmp/requirements.txt"]
    return [
        *lines,
        "",
        f"FROM {recipe.python_image}",
        "# A user without rights; it has a name and a home, since libraries ask for them. The root file system may be read-only: it writes to /tmp alone.",
        "RUN echo 'serinus:x:1000:' >> /etc/group && echo 'serinus:x:1000:1000:serinus:/tmp:/usr/sbin/nologin' >> /etc/passwd",
        "ENV PATH=/opt/serinus/bin:$PATH LD_LIBRARY_PATH=/opt/serinus/lib PYTHONPATH=/app PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \\",
        "    SERINUS_CACHE_DIR=/tmp/serinus MLSERVER_HOST=0.0.0.0",
        "WORKDIR /app",
        "COPY --from=packages --chown=1000:1000 /opt/serinus /opt/serinus",
    ]


def _quoted(text: str) -> str:
    """A value of ENV or LABEL; nothing in it is a variable or another instruction."""
    return json.dumps(text).replace("$", "\\$")


def write_context(recipe: Recipe, folder: Path, wheel: Path | None) -> Path:
    """Write the folder that an engine builds from: the Dockerfile, the wheel, `app/`, `model/`, `requirements.txt`.

    Args:
        recipe: how the image is made.
        folder: made; it must be empty or not there.
        wheel: the package's; None with a base image.

    Returns:
        The Dockerfile.

    Raises:
        ConfigError: the folder has something in it, a file cannot be read, or a link leads out of the folder that the image is made of.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise ConfigError(f"{folder}: not empty; name a folder that is not there yet")
        source = recipe.source
        left_out = LeftOut(source.folder)
        for name, paths in (("app", source.code), ("model", source.model)):
            for path in paths:
                _copy(path, folder / name / path.name, left_out, source.folder)
        if source.requirements is not None:
            is_found = source.folder is not None and source.requirements.parent == source.folder
            _copy(source.requirements, folder / "requirements.txt", left_out, source.folder if is_found else None)
            check_requirements(
                read_text(folder / "requirements.txt", errors="replace"), source.requirements, base=recipe.base
            )
        if wheel is not None:
            _copy(wheel, folder / wheel.name, left_out)
        dockerfile = folder / "Dockerfile"
        dockerfile.write_text(write_dockerfile(recipe), encoding="utf-8")
    except (OSError, shutil.Error) as error:
        raise ConfigError(f"{folder}: the files of the image cannot be written: {error}") from error
    # Whoever runs the image is nobody's owner here.
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return dockerfile


def _copy(path: Path, to: Path, left_out: LeftOut, within: Path | None = None) -> None:
    """Copy a file or a folder; what a link leads to, so that the image holds what is served here.

    Raises:
        ConfigError: a link leads out of `within`, or in a circle: a model from elsewhere would take any file of this machine into the image. Or it is
            no file, or a secret.
    """

    def check(file: str | Path) -> None:
        if within is not None and leads_out(Path(file), within, ()):
            raise ConfigError(
                f"{file}: a link that leads out of {within}; put a copy of what it leads to there, if that belongs into the image"
            )

    def enter(folder: str, names: list[str]) -> set[str]:
        check(folder)
        here = Path(folder)
        above = [here, *here.parents][: len(here.parts) - len(path.parts) + 1]
        if len({each.resolve() for each in above}) < len(above):
            raise ConfigError(f"{folder}: a link that leads in a circle")
        return {name for name in names if left_out.has(here / name)}

    def copy(source: str, target: str) -> str:
        check(source)
        if not Path(source).is_file():
            raise ConfigError(f"{source}: is no file; a pipe, a socket or a device cannot be part of an image")
        with Path(source).open("rb") as opened:
            check_no_secret(Path(source), opened.read(SECRET_HEAD_BYTES))
        return str(shutil.copyfile(source, target))

    to.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        shutil.copytree(path, to, ignore=enter, copy_function=copy)
    else:
        copy(str(path), str(to))


def image_name(name: str) -> str:
    """A name for an image of a model: lower case, letters, digits, `.`, `_` and `-` (the distribution specification's path component)."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "model"


def check_arguments(arguments: Sequence[str], values: dict[str, str], *, base: str) -> None:
    """Refuse a build argument whose value would stay in the image's history with a password in it.

    Raises:
        ConfigError: a URL with credentials, and the image is made from a base, where packages are installed in the image itself.
    """
    for name in arguments:
        if base and re.search(r"://[^/\s]*@", values.get(name, "")):
            raise ConfigError(
                f"{name} has credentials, which would stay in the history of an image made with --base: build without --base, "
                "where a stage of its own installs, or have pip read them from a pip.conf of the base"
            )
