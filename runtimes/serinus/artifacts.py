"""What the runtimes of every framework do with a model's directory and settings: find the file, read labels, check `extra`.

All of it runs once, at load; every mistake is a `ConfigError` that names the file or key, what came and what is accepted.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from .content.model_content import Content, content_of
from .content.pickles import mend_in, mend_of
from .errors import ConfigError
from .protocol.types import TensorSpec
from .secrecy import hide_named
from .settings import ModelSettings
from .small_file import read_text

__all__ = [
    "Extra",
    "SAVED_MODEL_FILES",
    "check_inside",
    "declares_no_batch",
    "find_file",
    "held",
    "is_saved_model",
    "leads_out",
    "override_specs",
    "read_labels",
    "said_of_another",
    "saved_model_file",
    "steady",
    "unchanged",
]

SAVED_MODEL_FILES = ("saved_model.pb", "saved_model.pbtxt")
"""A SavedModel's graph (tensorflow/python/saved_model/constants.py); the second is what a builder writes with `as_text`."""

Parsed = TypeVar("Parsed")


class Extra:
    """The runtime's own settings (`parameters.extra`, `--extra KEY=VALUE`), each taken once and checked.

    Example:
        >>> extra = Extra({"device": "cpu"}, known=("device", "autocast"))
        >>> extra.choice("device", ("auto", "cpu", "cuda"))
        'cpu'
        >>> extra.close()
    """

    def __init__(self, values: Mapping[str, Any], *, known: Sequence[str]) -> None:
        self._values = values
        self._problems: list[str] = []
        for key in values:
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1)
                hint = f"; did you mean {near[0]}?" if near else ""
                self._problems.append(f"extra setting {key!r} is unknown; known are {', '.join(sorted(known))}{hint}")

    def choice(self, key: str, accepted: Sequence[str]) -> str:
        """One of several words; the first is the default."""
        value = self._values.get(key, accepted[0])
        if value not in accepted:
            self._problems.append(
                f"extra setting {key!r} is {hide_named(key, value)!r}; accepted are {', '.join(accepted)}"
            )
            return accepted[0]
        return value

    def text(self, key: str, default: str = "") -> str:
        """A string."""
        value = self._values.get(key, default)
        if not isinstance(value, str):
            self._problems.append(f"extra setting {key!r} is {hide_named(key, value)!r}; text was expected")
            return default
        return value

    def truth(self, key: str, *, default: bool = False) -> bool:
        """True or false."""
        value = self._values.get(key, default)
        if not isinstance(value, bool):
            self._problems.append(f"extra setting {key!r} is {hide_named(key, value)!r}; true or false was expected")
            return default
        return value

    def texts(self, key: str, default: Sequence[str] = ()) -> tuple[str, ...]:
        """A list of strings; one string alone is a list of one."""
        value = self._values.get(key, list(default))
        if isinstance(value, str):
            value = [value]
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            self._problems.append(f"extra setting {key!r} is {hide_named(key, value)!r}; a list of texts was expected")
            return tuple(default)
        return tuple(value)

    def numbers(self, key: str, default: Sequence[int] = ()) -> tuple[int, ...]:
        """A list of whole numbers of at least 1."""
        value = self._values.get(key, list(default))
        if not isinstance(value, list) or not all(type(item) is int and item >= 1 for item in value):
            self._problems.append(
                f"extra setting {key!r} is {hide_named(key, value)!r}; a list of whole numbers was expected"
            )
            return tuple(default)
        return tuple(value)

    def mapping(self, key: str) -> Mapping[str, Any]:
        """An object."""
        value = self._values.get(key, {})
        if not isinstance(value, dict):
            self._problems.append(f"extra setting {key!r} is {hide_named(key, value)!r}; an object was expected")
            return {}
        return value

    def parse(self, key: str, parser: Callable[[Any], Parsed], default: Parsed) -> Parsed:
        """Whatever `parser` makes of the value; it raises ValueError or TypeError with what was expected."""
        if key not in self._values:
            return default
        try:
            return parser(self._values[key])
        except (ValueError, TypeError) as error:
            self._problems.append(f"extra setting {key!r} is {hide_named(key, self._values[key])!r}; {error}")
            return default

    def close(self) -> None:
        """Refuse whatever was wrong.

        Raises:
            ConfigError: with all problems.
        """
        if self._problems:
            raise ConfigError(self._problems)


def leads_out(path: Path, folder: Path, allowed: Sequence[Path]) -> bool:
    """Tell whether a path ends elsewhere than in a folder, or in one of those allowed, once `..` and all links are followed.

    A link that leads in a circle leads out, and so does what is no path (with a NUL).
    """
    try:
        ends = path.resolve()
        if ends.is_symlink():  # what resolve() leaves of a circle
            return True
        return not any(ends.is_relative_to(root.resolve()) for root in (folder, *allowed))
    except (
        OSError,
        RuntimeError,
        ValueError,
    ):  # Python before 3.13 raises RuntimeError of a circle; ValueError of a NUL
        return True


def check_inside(path: Path, settings: ModelSettings) -> Path:
    """Give back a file that was found in the model's directory, unless a link in there leads out.

    Args:
        path: the file.
        settings: `model_dir` is what was named, and may be a link itself; `allow_uri` says where its links may lead.

    Raises:
        ConfigError: it leads out.
    """
    root = settings.model_dir
    if (
        root is not None
        and path != root
        and leads_out(path, root if root.is_dir() else root.parent, settings.allow_uri)
    ):
        raise ConfigError(
            f"{path}: leads out of the model's directory; to trust it, start with --allow_uri and the folder to read from"
        )
    return path


def find_file(
    settings: ModelSettings,
    suffixes: Sequence[str],
    *,
    preferred: Sequence[str] = (),
    contents: Sequence[Content] = (),
) -> Path:
    """Find the one model file: by its content where it is told apart by that, else by its suffix.

    Args:
        settings: `model_dir` is a file, under any name, or a folder that holds one.
        suffixes: of the files that this runtime takes.
        preferred: names that win where a folder holds several.
        contents: what such a file is by its bytes; it need not have one of the suffixes then.

    Raises:
        ConfigError: none is there, or several are.
    """
    root = settings.model_dir
    accepted = ", ".join(suffixes)
    if root is None:
        raise ConfigError(f"model {settings.name!r}: name the model's file or directory (--model_dir)")
    if root.is_file():
        found = content_of(root)
        # What says nothing of itself, and pickles, are the runtime's own reader's to refuse, or (a state dict) to read with care.
        if found in contents or (found in (Content.UNKNOWN, Content.PICKLE) and root.suffix in suffixes):
            return root
        raise ConfigError(
            f"{root}: not a file of this runtime, which takes {accepted}; {mend_of(root) or _said_of(found)}"
        )
    if not root.is_dir():
        raise ConfigError(f"{root}: no such file or directory")
    for name in preferred:
        if (root / name).is_file():
            return check_inside(root / name, settings)
    files = sorted(path for path in root.iterdir() if path.is_file() and not path.name.startswith("."))
    candidates = [path for path in files if path.suffix in suffixes]
    if len(candidates) > 1:  # a text file of labels beside a text model
        candidates = [path for path in candidates if content_of(path) in contents] or candidates
    candidates = candidates or [path for path in files if content_of(path) in contents]
    if len(candidates) == 1:
        return check_inside(candidates[0], settings)
    if candidates:
        names = ", ".join(path.name for path in candidates)
        better = preferred[0] if preferred else f"model{suffixes[0]}"
        raise ConfigError(f"{root}: holds several models ({names}); name the one file, or call it {better}")
    seen = ", ".join(sorted(path.name for path in root.iterdir())[:12]) or "nothing"
    raise ConfigError(f"{root}: no model file ({accepted}); seen: {seen}{mend_in(root) or said_of_another(files)}")


def is_saved_model(folder: Path) -> bool:
    """Tell a SavedModel's folder."""
    return saved_model_file(folder).is_file()


def saved_model_file(folder: Path) -> Path:
    """Name the file of a SavedModel's graph, whether or not it is there; TensorFlow takes the first where there are both."""
    binary, text = (folder / name for name in SAVED_MODEL_FILES)
    return text if text.is_file() and not binary.is_file() else binary


def said_of_another(files: Sequence[Path]) -> str:
    """End a refusal with the first file that another runtime serves, and which; empty: there is none."""
    for path in files:
        found = content_of(path)
        if found.package:
            return f"; {path.name} is {found.value}, which {found.package} serves"
    return ""


def _said_of(content: Content) -> str:
    """End a refusal with what a file is, and who serves that."""
    served = f", which {content.package} serves" if content.package else ""
    return f"by its content it is {content.value}{served}"


def declares_no_batch(model_dir: Path | None) -> bool:
    """Whether a `config.pbtxt` (Triton's, model_config.proto) in the model's folder, or above its numbered one, has max_batch_size 0."""
    if model_dir is None:
        return False
    folder = model_dir if model_dir.is_dir() else model_dir.parent
    for place in (folder, folder.parent) if folder.name.isdecimal() else (folder,):
        try:
            text = read_text(place / "config.pbtxt", errors="replace")
        except OSError:
            continue
        sizes = re.findall(r"^[^\S\n]*max_batch_size\s*:\s*(\d+)", text, re.MULTILINE)
        return bool(sizes) and not sizes[-1].strip("0")
    return False


def read_labels(settings: ModelSettings, name: str) -> tuple[str, ...]:
    """Read class names, by index: a text file with one a line, or a JSON array.

    Args:
        settings: `model_dir` is where a relative name is looked for.
        name: the file; empty: `labels.txt` or `labels.json` where there is one.

    Raises:
        ConfigError: the named file is missing or malformed.
    """
    root = settings.model_dir
    if root is None:
        return ()
    folder = root if root.is_dir() else root.parent
    candidates = [folder / name] if name else [folder / "labels.txt", folder / "labels.json"]
    path = next((candidate for candidate in candidates if candidate.is_file()), None)
    if path is None:
        if name:
            raise ConfigError(f"{candidates[0]}: no such labels file")
        return ()
    check_inside(path, settings)
    try:
        text = read_text(path)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: labels cannot be read: {error}") from None
    if path.suffix == ".json":
        try:
            labels = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{path}: not JSON: {error}") from None
        if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
            raise ConfigError(f"{path}: a JSON array of strings was expected")
        return tuple(labels)
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def override_specs(own: Sequence[TensorSpec], wanted: Sequence[TensorSpec], what: str) -> tuple[TensorSpec, ...]:
    """Let `model-settings.json` rename what the model says of itself, by position.

    Args:
        own: what the file says; empty where it says nothing.
        wanted: what the settings say; empty: the file's own stand.
        what: "inputs" or "outputs", for messages.

    Raises:
        ConfigError: the counts differ.
    """
    if not wanted:
        return tuple(own)
    if own and len(own) != len(wanted):
        raise ConfigError(f"the settings name {len(wanted)} {what}, the model has {len(own)}")
    return tuple(wanted)


@contextmanager
def held(file: Path) -> Iterator[Path]:
    """Give a path by which a file stays the same while it is looked through and then loaded, by whoever opens it.

    Who may write to a model's folder could put one file there for the check and another for the framework. Another file under the name is never
    opened here; what is written into this one meanwhile is noticed at the end.

    Raises:
        ConfigError: the file cannot be read, or was written to or replaced meanwhile; what is raised within names `file`.
    """
    try:
        handle = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from None
    own = Path(f"/proc/self/fd/{handle}")
    try:
        before = _state(os.fstat(handle))
        try:
            yield own if own.exists() else file
        except ConfigError as error:
            raise ConfigError([problem.replace(str(own), str(file)) for problem in error.problems]) from error.__cause__
        if _state(os.fstat(handle)) != before:
            raise ConfigError(f"{file}: changed while it was loaded; load it again")
    finally:
        os.close(handle)


@contextmanager
def unchanged(file: Path, sha256: str) -> Iterator[None]:
    """Have a framework read a file again that was read and checked before.

    Args:
        file: what it reads.
        sha256: of what was checked, in hex.

    Raises:
        ConfigError: it is another, or changes meanwhile; nothing of the framework's is to be used then.
    """
    changed = ConfigError(f"{file}: changed while it was loaded; load it again")
    try:
        before = _state(file.stat())
        with file.open("rb") as opened:
            digest = hashlib.sha256()
            while piece := opened.read(1 << 20):
                digest.update(piece)
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read again: {error.strerror}") from None
    if digest.hexdigest() != sha256:
        raise changed
    yield
    try:
        after = _state(file.stat())
    except OSError:
        raise changed from None
    if after != before:
        raise changed


@contextmanager
def steady(files: Sequence[Path]) -> Iterator[None]:
    """Have a framework read files by their names, some more than once, and notice that one was written to or replaced meanwhile.

    For what consists of several files, which belong together, or can be opened by its name alone.

    Args:
        files: each is there.

    Raises:
        ConfigError: one changed, or is gone; nothing of the framework's is to be used then.
    """
    before = [(file, _named_state(file)) for file in files]
    try:
        yield
    finally:
        changed = next((file for file, state in before if _named_state(file) != state), None)
        if changed is not None:  # whatever was raised of it: a mixture is refused for being one
            raise ConfigError(f"{changed}: changed while it was loaded; load it again")


def _named_state(file: Path) -> tuple[int, ...]:
    try:
        return _state(file.stat())
    except OSError:
        return ()


def _state(status: os.stat_result) -> tuple[int, ...]:
    """What differs of another file, or once a file was written to: nobody sets `ctime` back."""
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
