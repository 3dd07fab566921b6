"""The compiled perceptron by itself: every step against NumPy's float64, rows of both types, and no byte read outside its arrays."""

from __future__ import annotations

import math
import subprocess
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as fuzz
from hypothesis import strategies as st

from serinus.native import build, library
from serinus.native.dense.mlp_kernel import MLP, Kind, Step

pytestmark = pytest.mark.skipif(library() is None, reason="the kernels are not built")

ODD = np.array([0.0, -0.0, 1e-300, -1e-300, 0.5, -0.5, 3.0, -3.0, 40.0, -40.0, 1e6, -1e6, np.nan, np.inf, -np.inf])


def _gelu(x: np.ndarray) -> np.ndarray:
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / np.sqrt(2)))


def _gelu_tanh(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


PLAIN = {
    Kind.ASINH: np.arcsinh,
    Kind.RELU: lambda x: np.where(x < 0, 0, x),
    Kind.LOG: np.log,
    Kind.SIGMOID: lambda x: 1 / (1 + np.exp(-x)),
    Kind.TANH: np.tanh,
    Kind.GELU: _gelu,
    Kind.GELU_TANH: _gelu_tanh,
}


@pytest.mark.parametrize("kind", PLAIN, ids=lambda kind: kind.name.lower())
def test_an_activation_is_the_function_of_its_name(kind: Kind) -> None:
    columns = np.arange(len(ODD), dtype=np.int32)
    steps = [Step(Kind.SELECT, -1, len(ODD), first=columns), Step(kind, 0, len(ODD))]
    with np.errstate(all="ignore"):
        wanted = PLAIN[kind](ODD)
    found = MLP(steps, row_dtype=np.float64).predict(ODD[None])[0]
    # Libraries agree to a few units in the last place; 1 + erf(x) of a negative x loses some more.
    np.testing.assert_allclose(found, wanted, rtol=1e-14, atol=1e-16)


@given(
    seed=st.integers(0, 2**32 - 1),
    widths=st.lists(st.integers(1, 70), min_size=2, max_size=5),
    rows=st.integers(0, 40),
    wide=st.booleans(),
)
@fuzz(max_examples=60, deadline=None)
def test_layers_of_any_width_sum_as_numpy_does(seed: int, widths: list[int], rows: int, wide: bool) -> None:
    random = np.random.default_rng(seed)
    dtype = np.float64 if wide else np.float32
    data = random.normal(size=(rows, widths[0])).astype(dtype)
    steps = [Step(Kind.SELECT, -1, widths[0], first=np.arange(widths[0], dtype=np.int32))]
    wanted = data.astype(np.float64)
    for width, outputs in pairwise(widths):
        weights, bias = random.normal(size=(width, outputs)), random.normal(size=outputs)
        steps.append(Step(Kind.DENSE, len(steps) - 1, outputs, bias, weights))
        steps.append(Step(Kind.TANH, len(steps) - 1, outputs))
        wanted = np.tanh(bias + wanted @ weights)
    made = MLP(steps, row_dtype=dtype)
    found = made.predict(data)
    assert found.shape == (rows, widths[-1])
    np.testing.assert_allclose(found, wanted, rtol=1e-11, atol=1e-12)
    for at in range(min(rows, 5)):  # whatever the rows beside it are
        np.testing.assert_array_equal(made.predict(data[at : at + 1])[0], found[at])


def test_the_types_of_rows_are_not_mixed_up() -> None:
    steps = [Step(Kind.SELECT, -1, 2, first=np.array([1, 0], np.int32))]
    for dtype, other in ((np.float32, np.float64), (np.float64, np.float32)):
        made = MLP(steps, row_dtype=dtype)
        np.testing.assert_array_equal(made.predict(np.array([[1, 2]], dtype)), [[2, 1]])
        with pytest.raises(ValueError, match=f"rows must be {np.dtype(dtype).name}"):
            made.predict(np.array([[1, 2]], other))


@pytest.mark.slow
def test_the_kernel_reads_no_byte_outside_its_arrays(tmp_path: Path) -> None:
    """Under AddressSanitizer and UndefinedBehaviorSanitizer, every step at many widths raises no complaint."""
    try:
        command = build.compiler()
    except build.CompilerMissing:
        pytest.skip("no C compiler")
    folder = Path(build.__file__).parent
    source, program = tmp_path / "perceptron.c", tmp_path / "perceptron"
    source.write_text(_SANITIZED)
    flags = ["-std=c11", "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    includes = [f"-I{folder}", f"-I{folder / 'dense'}"]
    built = subprocess.run([*command, *flags, *includes, "-o", str(program), str(source), "-lm"], capture_output=True)
    if built.returncode and b"asan" in built.stderr:
        pytest.skip("the compiler has no sanitizers")
    assert built.returncode == 0, built.stderr.decode()
    subprocess.run([str(program)], check=True, capture_output=True)


_SANITIZED = r"""
#include "mlp.c"
#include <stdlib.h>
int main(void) {
    for (int32_t wide = 0; wide < 2; wide++)
        for (int32_t width = 1; width < 90; width += 1 + width / 8)
            for (int64_t rows = 0; rows < 20; rows = rows * 2 + 1) {
                const int32_t columns = width + 3, outputs = (width * 7) % 61 + 1;
                int32_t *select = calloc((size_t)width, sizeof *select);
                double *vector = calloc((size_t)width, sizeof *vector), *bias = calloc((size_t)outputs, sizeof *bias);
                double *weights = calloc((size_t)(width * outputs), sizeof *weights);
                for (int32_t i = 0; i < width; i++) select[i] = (i * 5) % columns, vector[i] = i - 3;
                for (int32_t i = 0; i < width * outputs; i++) weights[i] = i % 7 - 3;
                const size_t numbers = (size_t)(rows * columns), room = numbers ? numbers : 1;
                float *single = malloc(room * sizeof *single);
                double *exact = malloc(room * sizeof *exact);
                for (size_t i = 0; i < numbers; i++)
                    single[i] = i % 5 ? (float)(i % 11) - 5 : i % 3 ? NAN : INFINITY, exact[i] = single[i];
                double *answers = malloc(sizeof(double) * (size_t)(rows * outputs + !rows));
                serinus_step steps[16] = {{.kind = SELECT, .other = -1, .outputs = width, .first = select}};
                int32_t count = 1, at = 0, end = width;
                for (int32_t kind = ASINH; kind <= GELU_TANH; kind++) {
                    if (kind == DENSE || kind == NORM || end + width > WORKSPACE - outputs - 1) continue;
                    steps[count++] = (serinus_step){.kind = kind, .source = at, .other = -1, .target = end, .width = width,
                                                    .outputs = width, .first = vector, .second = vector};
                    at = end;
                    end += width;
                }
                steps[count++] = (serinus_step){.kind = NORM, .source = at, .other = -1, .target = end, .width = width, .outputs = 1};
                end += 1;
                steps[count++] = (serinus_step){.kind = DENSE, .source = at, .other = -1, .target = end, .width = width,
                                                .outputs = outputs, .first = bias, .second = weights, .x = 1};
                serinus_mlp_predict(steps, count, wide ? (void *)exact : (void *)single, wide, rows, columns, answers);
                free(select); free(vector); free(bias); free(weights); free(single); free(exact); free(answers);
            }
    return 0;
}
"""
