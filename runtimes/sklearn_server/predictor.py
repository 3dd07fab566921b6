"""scikit-learn itself: what verifies the compiled program, and serves what that does not cover.

scikit-learn, skops, joblib and pandas are imported when the first of these is wanted, and not before: they cost 1 to 2 s and over 100 MB.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np

from serinus.artifacts import unchanged
from serinus.errors import ConfigError, InvalidInput
from serinus.settings import ModelSettings

from .columns import Columns, columns_of
from .estimator import Estimator, describe
from .heads import labels_of
from .modelfile import ModelFile, check_types, checked

__all__ = ["METHODS", "Predictor", "installed_version"]

_log = logging.getLogger("serinus.sklearn")

_MOST_BYTES: Final = (1 << 31) - 1
"""What one gRPC message carries: a HashingVectorizer makes a million numbers of each text, so 4,096 short ones would be 34 GB."""
METHODS: Final = ("predict", "predict_proba", "decision_function", "transform")
"""What a model may be asked, in the order of the outputs."""

_TEXTS: Final = re.compile(r"sklearn\.feature_extraction\.text\.\w*Vectorizer")


def installed_version() -> str:
    """Version of the installed scikit-learn, found without importing it; empty: it is not installed."""
    try:
        return importlib.metadata.version("scikit-learn")
    except importlib.metadata.PackageNotFoundError:
        return ""


class Predictor:
    """A loaded model, asked with the rows that the compiled program takes.

    Args:
        file: may be loaded: a pickle was allowed.
        settings: `allow_implementation` says what a skops file may name.

    Raises:
        ConfigError: scikit-learn is not installed or refuses the file, or the file names what nobody trusts.
    """

    def __init__(self, file: ModelFile, settings: ModelSettings) -> None:
        try:
            import sklearn
        except ImportError:
            raise ConfigError(
                f"{file.path}: serving this model takes scikit-learn, which is not installed; pip install 'serinus[sklearn-server]'"
            ) from None
        # Rows without names and unknown categories are the clients', and would fill the log.
        warnings.filterwarnings("ignore", category=UserWarning, module=r"sklearn\.")
        self.version: str = sklearn.__version__
        with _quiet():
            self._live = _load(file, settings, self.version)
        # Again, of what was made: two readers of one file may take different things from it.
        self.model: Estimator = checked(describe(self._live), file.path)
        if not file.is_pickle:
            _check_texts(self.model, file, settings)
        _limit_jobs(self._live, settings.native_threads)
        self.outputs: tuple[str, ...] = tuple(method for method in METHODS if _has(self._live, method))
        self.columns: Columns = columns_of(self.model)
        columns = self.columns
        self._frame: Sequence[str] = columns.names if columns.is_frame or columns.selects_by_name else ()
        """Names of the columns, where rows are handed over as a DataFrame."""
        if not self.outputs:
            raise ConfigError(f"{file.path}: {type(self._live).__name__} has none of the methods {', '.join(METHODS)}")

    def run(self, rows: np.ndarray, wanted: frozenset[str]) -> dict[str, np.ndarray]:
        """Answer methods, as the protocol carries them.

        Raises:
            InvalidInput: scikit-learn does not take the rows, in its words.
        """
        given = self._given(rows)
        made: dict[str, np.ndarray] = {}
        for method in self.outputs:
            if method in wanted:
                try:
                    with np.errstate(all="ignore"):  # rounding to float32 and scaling may overflow, as they should
                        made[method] = _carried(getattr(self._live, method)(given))
                except (ValueError, TypeError, KeyError) as error:
                    if not len(rows):
                        raise InvalidInput("the model does not take a request of 0 rows; send at least one") from None
                    raise InvalidInput(f"the model does not take these rows: {_first_line(error)}") from None
        return made

    def _given(self, rows: np.ndarray) -> Any:
        if self.columns.is_text:
            return [_text(value) for value in rows.reshape(-1)]
        if not self._frame:
            if rows.dtype == object:
                made = np.empty(rows.shape, object)
                for column in range(rows.shape[1]):
                    made[:, column] = self._column(rows, column)
                return made
            return rows
        import pandas as pd

        if rows.dtype != object:
            return pd.DataFrame(rows, columns=pd.Index(self._frame), copy=False)
        return pd.DataFrame({name: self._column(rows, place) for place, name in enumerate(self._frame)})

    def _column(self, rows: np.ndarray, place: int) -> Any:
        values = rows[:, place].tolist()
        if place in self.columns.texts or any(isinstance(value, bytes | str) for value in values):
            absent = None if place in self.columns.nones else np.nan
            made = np.empty(len(values), object)
            made[:] = [absent if value is None else _text(value) for value in values]
            return made
        return np.array([np.nan if value is None else value for value in values], np.float64)


def _load(file: ModelFile, settings: ModelSettings, version: str) -> Any:
    try:
        if file.is_pickle:
            import joblib

            _log.warning(
                "%s: is loaded by unpickling, which runs code of the file: --allow_implementation pickle", file.path
            )
            with unchanged(file.path, file.sha256):
                return joblib.load(file.path)
        try:
            import skops.io
        except ImportError:
            raise ConfigError(
                f"{file.path}: loading this model takes skops, which is not installed; pip install 'serinus[sklearn-server]'"
            ) from None
        with unchanged(file.path, file.sha256):
            trusted = check_types(skops.io.get_untrusted_types(file=file.path), file.path, settings)
            return skops.io.load(file.path, trusted=trusted)
    except ConfigError:
        raise
    except Exception as error:  # noqa: BLE001 # a file's code, classes of any version and damage raise whatever they like
        raise ConfigError(
            f"{file.path}: scikit-learn {version} cannot load it: {type(error).__name__}: {_first_line(error)}"
        ) from None


def _check_texts(model: Estimator, file: ModelFile, settings: ModelSettings) -> None:
    """Refuse a step that takes the texts of a request for names of files (`CountVectorizer(input="filename")`), and counts the words in those.

    Raises:
        ConfigError: there is one that nobody allowed.
    """
    for part in model.parts():
        if _TEXTS.fullmatch(part.kind) and part.get("input") != "content" and not settings.allows(part.kind):
            raise ConfigError(
                f"{file.path}: its step {part.kind.rpartition('.')[2]} has input={part.get('input')!r}, so that it would open whatever file a client "
                f"names; save it with input='content', or, to trust it and its clients, start with --allow_implementation {part.kind}"
            )


def _limit_jobs(live: Any, threads: int) -> None:
    """Let no step of a model start more threads than the server has.

    A file says any number, and -1 is all CPUs of the machine, whatever the container's limit.
    """
    seen: set[int] = set()
    waiting = [live]
    while waiting:
        value = waiting.pop()
        if id(value) in seen or isinstance(value, type):
            continue
        seen.add(id(value))
        if isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, list | tuple):
            waiting += value
        elif isinstance(value, np.ndarray):
            waiting += value.reshape(-1).tolist() if value.dtype == object else []
        elif isinstance(held := getattr(value, "__dict__", None), dict):
            waiting += held.values()
            jobs = held.get("n_jobs")
            if isinstance(jobs, int | np.integer) and not 0 <= jobs <= threads:
                held["n_jobs"] = threads


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Leave out warnings of other versions, of which one line of ours tells."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _has(live: Any, method: str) -> bool:
    try:
        return callable(getattr(live, method, None))
    except Exception:  # noqa: BLE001 # a property that decides whether a method is there may raise anything
        return False


def _carried(answer: Any) -> np.ndarray:
    """Give an answer as the protocol carries it.

    Raises:
        TypeError: it cannot.
        ValueError: it would be too large.
    """
    if hasattr(answer, "toarray"):  # a sparse matrix, of as many columns as a vectorizer has words
        size = answer.shape[0] * answer.shape[1] * 8
        if size > _MOST_BYTES:
            raise ValueError(f"the answer would have {size} bytes, at most {_MOST_BYTES} are made; send fewer rows")
        answer = answer.toarray()
    if isinstance(answer, list):
        raise TypeError("a model of several outputs answers probabilities as a list, which has no one tensor")
    array = np.asarray(answer)
    if array.dtype.kind == "f":
        return np.ascontiguousarray(array, np.float64)
    made = labels_of(array)
    if made is None:
        try:
            return np.asarray(array, np.float64)
        except (TypeError, ValueError):
            raise TypeError(f"the model answers {array.dtype}, which the protocol cannot carry") from None
    return made


def _text(value: Any) -> Any:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:300]
