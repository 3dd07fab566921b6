"""Write the template's files under another name.

The template is the folder `template` beside this module: a model that trains, serves, is tested, linted and run as it is. In its files and
their names `__name__` is the model's name, `__module__` the module's, `__class__` the class's, `__version__` serinus's.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from .. import __version__
from ..errors import ConfigError

__all__ = ["TEMPLATE", "write_project"]

TEMPLATE: Final = Path(__file__).with_name("template")
_SUFFIX: Final = ".tmpl"
"""Of every file there, so that no tool takes one for a module, a test or a page of this package."""
_LONGEST: Final = 40
"""Characters of a name: KServe makes host names of it, and a label of those has 63 (RFC 1123) with a suffix and a namespace in it."""
_NAME: Final = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")


def write_project(folder: Path, name: str = "") -> list[Path]:
    """Write a new project.

    Args:
        folder: new, or empty.
        name: of the model and its InferenceService; empty: the folder's.

    Returns:
        The files, in order.

    Raises:
        ConfigError: the name is none for an InferenceService; there is something in the folder already.
    """
    name = name or re.sub(r"[^a-z0-9]+", "-", folder.resolve().name.lower()).strip("-")
    if not _NAME.fullmatch(name) or len(name) > _LONGEST:
        raise ConfigError(
            f"--name {name!r}: an InferenceService is named with small letters, digits and '-', a letter first, {_LONGEST} characters at most"
        )
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise ConfigError(f"{folder}: there is something already; name a new folder")
    module = name.replace("-", "_")
    words = {
        "__name__": name,
        "__module__": f"{module}_model" if _is_taken(module) else module,
        "__class__": "".join(part.capitalize() for part in name.split("-")),
        "__version__": __version__,
    }
    written = []
    for source in sorted(TEMPLATE.rglob(f"*{_SUFFIX}")):
        to = folder / _fill(str(source.relative_to(TEMPLATE)).removesuffix(_SUFFIX), words)
        try:
            to.parent.mkdir(parents=True, exist_ok=True)
            to.write_text(_fill(source.read_text(encoding="utf-8"), words), encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"{to}: cannot be written: {error.strerror or error}") from None
        written.append(to)
    return written


def _fill(text: str, words: dict[str, str]) -> str:
    for word, value in words.items():
        text = text.replace(word, value)
    return text


def _is_taken(module: str) -> bool:
    """Whether the module would hide one that is installed, or is a word of Python's."""
    import importlib.util
    import keyword

    return keyword.iskeyword(module) or module in {"model", "train"} or importlib.util.find_spec(module) is not None
