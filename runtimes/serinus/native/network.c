/* A small dense network in float64 over few rows: a list of steps, each over one row at a time.
 *
 * Theory of operation. For one row a framework's dispatch costs many times the arithmetic, and far more where other code has run in
 * between and its many pages are cold. Here the whole network is one call: every step reads its vector from the workspace and writes
 * another. A row's result never depends on the rows beside it. Sums run over the inputs in order, eight outputs at a time. */
#include "kernels.h"

#include <math.h>

enum { SELECT, ASINH, AFFINE, FILL, DENSE, RELU, NORM, LOG };
enum { TILE = 8, WORKSPACE = 2048 };

/* Mirrored by network.py. */
typedef struct {
    int32_t kind;
    int32_t source, other, target; /* where vectors begin in the workspace; other: -1, or what a DENSE adds in place of `first` */
    int32_t width, outputs;        /* of the source, of the target */
    const void *first;             /* SELECT: int32 columns; AFFINE: shift; DENSE: bias */
    const double *second;          /* AFFINE: scale; DENSE: weights [width][outputs] */
    double x, y, z;                /* FILL: for NaN, infinity, -infinity; DENSE: x is the factor of what is added */
} serinus_step;

/* `tile` outputs from `from` on; a constant where it is called, so that the sums stay in registers. */
static inline void dense_tile(const serinus_step *step, const double *source, const double *added, double *target,
                              int32_t from, const int tile) {
    const int32_t width = step->width, outputs = step->outputs;
    const double *weights = step->second + from;
    double sums[TILE];
    for (int k = 0; k < tile; k++) sums[k] = step->x * added[from + k];
    for (int32_t i = 0; i < width; i++, weights += outputs) {
        const double value = source[i];
        for (int k = 0; k < tile; k++) sums[k] += value * weights[k];
    }
    for (int k = 0; k < tile; k++) target[from + k] = sums[k];
}

static void dense(const serinus_step *step, const double *source, const double *added, double *target) {
    int32_t from = 0;
    for (; from + TILE <= step->outputs; from += TILE) dense_tile(step, source, added, target, from, TILE);
    if (from + 4 <= step->outputs) dense_tile(step, source, added, target, from, 4), from += 4;
    if (from + 2 <= step->outputs) dense_tile(step, source, added, target, from, 2), from += 2;
    if (from < step->outputs) dense_tile(step, source, added, target, from, 1);
}

static void run(const serinus_step *step, const float *row, double *work) {
    const double *source = work + step->source;
    double *target = work + step->target;
    const int32_t width = step->width;
    double sum = 0.0;
    switch (step->kind) {
    case SELECT:
        for (int32_t i = 0; i < step->outputs; i++) target[i] = (double)row[((const int32_t *)step->first)[i]];
        break;
    case ASINH:
        for (int32_t i = 0; i < width; i++) target[i] = asinh(source[i]);
        break;
    case AFFINE:
        for (int32_t i = 0; i < width; i++) target[i] = ((const double *)step->first)[i] + source[i] * step->second[i];
        break;
    case FILL:
        for (int32_t i = 0; i < width; i++) {
            const double value = source[i];
            target[i] = value != value ? step->x : value == INFINITY ? step->y : value == -INFINITY ? step->z : value;
        }
        break;
    case DENSE:
        dense(step, source, step->other < 0 ? step->first : work + step->other, target);
        break;
    case RELU: /* NaN stays NaN */
        for (int32_t i = 0; i < width; i++) target[i] = source[i] < 0.0 ? 0.0 : source[i];
        break;
    case NORM:
        for (int32_t i = 0; i < width; i++) sum += source[i] * source[i];
        target[0] = sqrt(sum);
        break;
    case LOG:
        for (int32_t i = 0; i < width; i++) target[i] = log(source[i]);
        break;
    }
}

/* rows: float32 [count][columns]; answers: float64 [count], the first number of the last step's target. */
SERINUS_EXPORT void serinus_network_predict(const serinus_step *steps, int32_t count_steps, const float *rows, int64_t count,
                                            int64_t columns, double *answers) {
    double work[WORKSPACE];
    for (int64_t row = 0; row < count; row++) {
        for (int32_t at = 0; at < count_steps; at++) run(steps + at, rows + (size_t)row * (size_t)columns, work);
        answers[row] = work[steps[count_steps - 1].target];
    }
}
