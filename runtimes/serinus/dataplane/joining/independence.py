"""Whether the rows of a model's batch are independent, found out by predicting: pure, but for the predicts that it asks for.

Theory of operation. Joining the rows of several callers is right only where the answer to a row depends on that row alone. The shapes of
a graph do not say so: a recurrent network with time first, the nodes of a graph, the points of a cloud and all that is normalised over
axis 0 leave the first dimension free as well. So rows are predicted alone, and then joined in several numbers (2, 3, 5, 8, and 33 where
predicts are quick) and orders, and beside neighbours a thousand times as large and as small, NaN, infinite, empty; each must get what it
got alone. Also
  - every output has as many rows as the inputs, and shapes that do not depend on the values;
  - the same call gives the same answer each time: a model that draws random numbers, or remembers, cannot be told from one that mixes rows;
  - rows that are answered alone are answered together;
  - so it is in large batches (64, 256, 1024 rows and one more, as many as will be joined) where those take under a quarter of a second and
    64 MB: a graph may give its places to the first rows that come (experts of a capacity), or compute in chunks. One that is refused is
    no harm, as the batcher tries it again request by request.
At least one scene (`sampling`) must be telling: rows of it get different answers. What refuses every scene is not found independent, nor is
what takes longer than the time that there is.

Tolerance. Frameworks choose other kernels for other numbers of rows, so floats differ in their last bits. An element may differ by
  FP64 1e-9, FP32 1e-4, FP16 and BF16 1e-2
of a magnitude: the largest that this element has among the rows predicted alone, or the median over the whole output where that is more
(so that an element near 0 is not held to more digits than its computation has, and one huge element does not excuse the others). The
coarsest type of the output, the inputs and the computation counts. Integers, BOOL and BYTES must be equal, as must NaN and infinities.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np

from .sampling import ROWS, Rows, Scene

__all__ = ["BUDGET_S", "CHECK", "LARGEST", "TOLERANCES", "Finding", "examine"]

Ask = Callable[[Rows], Mapping[str, Any]]

CHECK: Final = 2
"""Version of the check: raised with any change that could change what it finds, so that old records lapse."""
TOLERANCES: Final[Mapping[str, float]] = {"FP64": 1e-9, "FP32": 1e-4, "FP16": 1e-2, "BF16": 1e-2}
"""Largest relative difference of a float; see the module's docstring for what it is relative to."""
BUDGET_S: Final = 20.0
"""Longest check of one function of a model. A slow network's scene is 23 rows: ResNet-50, at 50 ms a row on two CPUs, is through in 1.2 s, and
800 ms a row are still done."""
_ENOUGH_S: Final = 5.0
"""Once a scene was telling, no other is begun after so long."""
_SLOW_S: Final = 0.02
"""A row that takes longer is tried in fewer, smaller batches."""
_ORDERS: Final = ((1, 0), (4, 2, 0), (3, 1, 4, 0, 2), (2, 0, 1, 4, 3, 0, 2, 1))
_FEW_ORDERS: Final = ((1, 0), (2, 0, 1))
_MANY: Final = 33
_LARGE: Final = (64, 65, 256, 1024)
"""Powers of two, which kernels and chunks are made for, and one more."""
_LARGE_S: Final = 0.25
"""Longest predict of a large batch, by what the one before took. On a machine that computes 10 GB/s of activations, some GB of them."""
_LARGE_BYTES: Final = 64 << 20
"""Most bytes of a large batch's inputs and outputs."""
LARGEST: Final = _LARGE[-1]
"""Rows of the largest batch that is tried."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What the check found."""

    outcome: Literal["independent", "dependent", "refused", "late"]
    """refused: nothing could be shown, and trying again will not; late: not in the time that there was."""
    reason: str
    """For people."""
    calls: int
    """Predicts that it took."""


class _Refused(Exception):
    """The model does not answer these rows."""


class _Dependent(Exception):
    """Rows are not independent; the text says how that shows."""


class _Late(Exception):
    """The time is up."""


def examine(
    predict: Ask,
    tries: Iterable[Scene],
    *,
    clock: Callable[[], float],
    datatypes: Sequence[str] = (),
    least_tolerance: float = 0.0,
    budget_s: float = BUDGET_S,
    most_rows: int = LARGEST,
) -> Finding:
    """Find out whether rows are independent.

    Args:
        predict: answers rows with outputs by name; what it raises means that it does not take them.
        tries: rows to try.
        clock: seconds.
        datatypes: of the inputs, and what the model computes in; the coarsest bounds how exact an answer can be.
        least_tolerance: a tolerance that is smaller is this one.
        budget_s: longest time.
        most_rows: of the batches that will be joined; the larger ones of the check are left out.
    """
    check = _Check(predict, clock, clock() + budget_s, datatypes, least_tolerance, most_rows)
    told, alike, refusal = 0, False, ""
    enough = clock() + min(_ENOUGH_S, budget_s)
    for scene in tries:
        if told and (scene.fallback or clock() > enough):
            continue
        try:
            if check.scene(scene):
                told += 1
            else:
                alike = True
        except _Refused as error:
            refusal = refusal or str(error)
        except _Dependent as error:
            return Finding("dependent", f"{error} ({scene.label})", check.calls)
        except _Late:
            break
    if told:
        return Finding(
            "independent", f"rows got the same answers alone and joined, in {check.calls} predicts", check.calls
        )
    if clock() > check.until:
        return Finding("late", f"whether rows are independent was not found out in {budget_s:.0f} s", check.calls)
    if alike:
        return Finding("refused", "all random rows get the same answer, which shows nothing", check.calls)
    return Finding("refused", f"random inputs are refused, so nothing was shown: {refusal}", check.calls)


class _Check:
    """The calls to one model, counted and timed."""

    def __init__(
        self,
        predict: Ask,
        clock: Callable[[], float],
        until: float,
        datatypes: Sequence[str],
        least_tolerance: float,
        most_rows: int,
    ) -> None:
        self._most_rows = most_rows
        self._tried_large = False
        self.until = until
        self.calls = 0
        self._predict = predict
        self._clock = clock
        self._least = max([least_tolerance, *(TOLERANCES.get(datatype, 0.0) for datatype in datatypes)])
        self._answered = False

    def scene(self, scene: Scene) -> bool:
        """Try one scene; says whether its rows get different answers.

        Raises:
            _Refused: the model does not answer each row alone.
            _Dependent: rows depend on others.
            _Late: the time is up.
        """
        if not self._answered:
            self._ask(_taken(scene.rows, [0]))  # the first call of a model compiles and allocates
            self._answered = True
        started = self._clock()
        first = self._ask(_taken(scene.rows, [0]))
        row_s = self._clock() - started
        count, orders = (3, _FEW_ORDERS) if row_s > _SLOW_S else (ROWS, _ORDERS)
        alone = _Alone([first, *(self._ask(_taken(scene.rows, [i])) for i in range(1, count))], self._least)
        alone.hold(self._ask(_taken(scene.rows, [0])), [0], again=True)
        if row_s * _MANY < _SLOW_S:
            orders = (*orders, tuple(np.random.default_rng(2).permutation(np.arange(_MANY) % count).tolist()))
        for order in orders:
            try:
                answer = self._ask(_taken(scene.rows, order))
            except _Refused as error:
                raise _Dependent(f"{len(order)} rows that are answered alone are refused together: {error}") from None
            alone.hold(answer, order)
        for kind, neighbours in (("loud", scene.loud), ("extreme", scene.extreme)):
            self._beside(scene.rows, neighbours, alone, count, kind)
        alone.hold(self._ask(_taken(scene.rows, [0])), [0], again=True)
        if alone.telling and not self._tried_large:
            self._tried_large = True
            self._large(scene.rows, alone, count, row_s)
        return alone.telling

    def _large(self, rows: Rows, alone: _Alone, count: int, row_s: float) -> None:
        """Predict rows many times over in large batches, as long as they are quick and small."""
        random = np.random.default_rng(3)
        row_bytes = alone.row_bytes + sum(array[:1].nbytes for array in rows.values())
        last_s, last = row_s, 1
        for total in _LARGE:
            if total > self._most_rows or total * row_bytes > _LARGE_BYTES or last_s * total / last > _LARGE_S:
                return
            order = random.integers(0, count, total).tolist()
            started = self._clock()
            try:
                answer = self._ask(_taken(rows, order))
            except _Refused:
                return
            last_s, last = self._clock() - started, total
            alone.hold(answer, order)

    def _beside(self, rows: Rows, neighbours: Rows, alone: _Alone, count: int, kind: str) -> None:
        """Predict rows between neighbours: n, r, n, r ... A batch that they spoil is no harm: it is tried again request by request."""
        mixed = {
            name: np.stack([neighbours[name][:count], array[:count]], axis=1).reshape(2 * count, *array.shape[1:])
            for name, array in rows.items()
        }
        try:
            answer = self._ask(mixed)
        except _Refused:
            return
        alone.hold(answer, range(count), places=slice(1, None, 2), total=2 * count, what=f" beside {kind} neighbours")

    def _ask(self, rows: Rows) -> dict[str, np.ndarray]:
        if self._clock() > self.until:
            raise _Late
        self.calls += 1
        try:
            with np.errstate(all="ignore"):
                answer = self._predict(rows)
        except Exception as error:  # noqa: BLE001 # whatever a framework raises at rows that it does not take
            text = str(error).strip().splitlines()
            raise _Refused(f"{type(error).__name__}{f': {text[0][:200]}' if text else ''}") from None
        return {str(name): np.asarray(array) for name, array in answer.items()}


class _Alone:
    """What each row was answered alone, to hold other answers against."""

    def __init__(self, answers: Sequence[Mapping[str, np.ndarray]], least_tolerance: float) -> None:
        names = answers[0].keys()
        self._expected: dict[str, np.ndarray] = {}
        self._scales: dict[str, np.ndarray] = {}
        self._tolerances = {
            name: max(TOLERANCES.get(f"FP{8 * array.dtype.itemsize}", 0.0), least_tolerance)
            if array.dtype.kind == "f"
            else 0.0
            for name, array in answers[0].items()
        }
        for name in names:
            for answer in answers:
                array = answer.get(name)
                if array is None or answer.keys() != names:
                    raise _Dependent("which outputs there are depends on the values")
                if not array.ndim or array.shape[0] != 1:
                    raise _Dependent(f"output '{name}' has shape {list(array.shape)} for 1 row of inputs")
            tails = {answer[name].shape[1:] for answer in answers}
            if len(tails) > 1:
                shown = " and ".join(str(list(tail)) for tail in sorted(tails)[:2])
                raise _Dependent(f"the shape of output '{name}' depends on the values: {shown}")
            joined = np.concatenate([answer[name] for answer in answers])
            self._expected[name] = joined
            if joined.dtype.kind == "f":
                self._scales[name] = _scale(joined)

    @property
    def telling(self) -> bool:
        """Rows get different answers, and numbers that are some."""
        return any(
            self._difference(name, array[:1].repeat(len(array), axis=0), array) > self._tolerances[name]
            and (array.dtype.kind != "f" or bool(np.isfinite(array).any()))
            for name, array in self._expected.items()
        )

    @property
    def row_bytes(self) -> int:
        """Bytes of one row's answer."""
        return sum(array[:1].nbytes for array in self._expected.values())

    def hold(
        self,
        answer: Mapping[str, np.ndarray],
        order: Sequence[int],
        *,
        places: slice = slice(None),
        total: int = 0,
        what: str = "",
        again: bool = False,
    ) -> None:
        """Hold an answer against those of the rows alone.

        Args:
            answer: outputs by name.
            order: the rows that it is of.
            places: where they are in the batch.
            total: rows of the batch; 0: those of `order`.
            what: they were predicted with, for the message.
            again: it is the same call as before.

        Raises:
            _Dependent: it differs.
        """
        total = total or len(order)
        if answer.keys() != self._expected.keys():
            raise _Dependent(f"{total} rows have other outputs than one row: {', '.join(answer)}")
        for name, expected in self._expected.items():
            array = answer[name]
            if array.shape != (total, *expected.shape[1:]):
                if again:
                    raise _Dependent("answers differ from call to call")
                alone = [1, *expected.shape[1:]]
                raise _Dependent(f"output '{name}' has shape {list(array.shape)} for {total} rows and {alone} for one")
            apart = self._difference(name, array[places], expected[list(order)])
            if apart > self._tolerances[name]:
                if again:
                    raise _Dependent(
                        f"answers differ from call to call: output '{name}' by {_told(apart)} of its magnitude"
                    )
                allowed = self._tolerances[name]
                raise _Dependent(
                    f"joined with others{what}, {total} in all, a row of output '{name}' differs from its answer alone"
                    + (
                        f" by {_told(apart)} of its magnitude; {allowed:g} is allowed"
                        if expected.dtype.kind == "f"
                        else ""
                    )
                )

    def _difference(self, name: str, got: np.ndarray, expected: np.ndarray) -> float:
        """Largest difference, relative to the magnitude of floats; other values are equal (0) or not (infinity)."""
        if not expected.size:
            return 0.0
        if expected.dtype.kind != "f" or got.dtype.kind != "f":
            return 0.0 if got.dtype.kind == expected.dtype.kind and bool(np.all(got == expected)) else np.inf
        a, b = got.astype(np.float64), expected.astype(np.float64)
        with np.errstate(all="ignore"):
            same = (a == b) | (np.isnan(a) & np.isnan(b))
            apart = np.where(same, 0.0, np.abs(a - b) / self._scales[name])
        return float(np.where(np.isnan(apart), np.inf, apart).max())


def _scale(rows: np.ndarray) -> np.ndarray:
    """Magnitude of each element of an output; see the module's docstring. [1, ...]."""
    sizes = np.abs(rows.astype(np.float64))
    sizes[~np.isfinite(sizes)] = 0
    present = sizes[sizes > 0]
    return np.maximum(sizes.max(axis=0, keepdims=True), float(np.median(present)) if present.size else 0.0)


def _taken(rows: Rows, order: Sequence[int]) -> dict[str, np.ndarray]:
    """Take rows as arrays of their own: a model may write to what it is given."""
    return {name: array[list(order)] for name, array in rows.items()}


def _told(apart: float) -> str:
    return f"{apart:.2g}" if np.isfinite(apart) else "more than can be told"
