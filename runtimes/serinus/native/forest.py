"""`Forest`: a float32 tree ensemble as flat arrays, walked by compiled code (`forest.c`). Knows no framework.

Nodes take 8 bytes where feature numbers and distances fit 15 bits, else 12; see walker.py for what happens around them.
"""

from __future__ import annotations

import ctypes

import numpy as np

from .loader import Library
from .walker import KernelsMissing, Link, Struct, Trees, Walker, breadth_first, kernels, lay_out, outputs_of

__all__ = ["ENGINE", "Forest", "KernelsMissing", "Link", "Trees", "margin_of"]

ENGINE = 2
"""Version of the walk's arithmetic: raised with any change that could change a result, so that old verdicts lapse."""

_NARROW = np.dtype([("value", "<f4"), ("feature", "<u2"), ("step", "<i2")])
_WIDE = np.dtype([("value", "<f4"), ("feature", "<u4"), ("step", "<i4")])
_NARROW_LIMIT = 0x7FFF
_FLOAT32 = np.dtype(np.float32)


class Forest(Walker):
    """An ensemble in float32, as XGBoost's, ready to predict.

    Args:
        trees: the trees; copied.
        columns: features of a row.
        base: float32 [outputs]: what each output's sum starts from, in margin space.
        link: maps margins to predictions.
        missing: a value that counts as missing, beside NaN.
        threads: most threads of one call.
        library: the compiled library; None: the installed one.

    Raises:
        KernelsMissing: the compiled kernels are not there.
        ValueError: an index leads out of its tree, out of the row or out of the outputs, or nodes form a ring.
    """

    dtype = np.dtype(np.float32)
    function = "serinus_forest_predict"

    def __init__(
        self,
        trees: Trees,
        *,
        columns: int,
        base: np.ndarray,
        link: Link = Link.IDENTITY,
        missing: float = float("nan"),
        threads: int = 1,
        library: Library | None = None,
    ) -> None:
        library = library or kernels()
        order, roots, depths = breadth_first(trees)
        nodes, wide = _pack(trees, order, columns)
        outputs = outputs_of(trees, len(base))
        arrays = nodes, roots, depths, outputs, np.ascontiguousarray(base, np.float32)
        struct = Struct(
            *(array.ctypes.data for array in arrays),
            trees=len(outputs),
            groups=len(base),
            columns=columns,
            wide=wide,
            link=int(link),
            other_missing=0 if np.isnan(missing) else 1,
            missing=float(missing),
        )
        super().__init__(struct, arrays, steps_per_row=int(depths.sum()), threads=threads, library=library)


def margin_of(link: Link, predictions: np.ndarray) -> np.ndarray:
    """Invert a link in float32, as XGBoost maps a base_score to a margin.

    Args:
        link: SIGMOID or EXP are inverted; the others leave values as they are.
        predictions: float32 [n].

    Raises:
        KernelsMissing: the compiled kernels are not there.
    """
    values = np.array(predictions, _FLOAT32)
    function = kernels().quick.serinus_forest_margin_of
    function.argtypes, function.restype = (ctypes.c_uint32, ctypes.c_void_p, ctypes.c_int64), None
    function(int(link), values.ctypes.data, len(values))
    return values


def _pack(trees: Trees, order: np.ndarray, columns: int) -> tuple[np.ndarray, int]:
    """Pack the nodes for forest.c; returns them, and 1 where they had to be the wide ones."""
    inner, feature, step = lay_out(trees, order, columns)
    wide = int(max(columns, int(step.max(initial=0))) > _NARROW_LIMIT)
    default_left = inner & trees.default_left[order]
    if np.any(default_left & ~(trees.value[order] > -np.inf)):
        raise ValueError("a missing value goes left at a threshold that is no number above -infinity")
    nodes = np.zeros(len(order), _WIDE if wide else _NARROW)
    nodes["value"] = trees.value[order]
    nodes["feature"] = 2 * feature + default_left
    nodes["step"] = step
    return nodes, wide
