/* A multi-layer perceptron in float64 over few rows: a list of steps, each over one row at a time.
 *
 * Theory of operation. For one row a framework's dispatch costs many times the arithmetic, and far more where other code has run in
 * between and its many pages are cold. Here the whole of it is one call: every step reads its vector from the workspace and writes
 * another. A row's result never depends on the rows beside it. Sums run over the inputs in order, several outputs at a time: as many
 * as the processor's registers hold, each by itself, so that every processor finds the same bits. */
#include "kernels.h"
#include "processor.h"

#include <math.h>
#include <string.h>

enum { SELECT, ASINH, AFFINE, FILL, DENSE, RELU, NORM, LOG, SIGMOID, TANH, GELU, GELU_TANH };
enum { WORKSPACE = 2048 };

/* Mirrored by mlp_kernel.py. */
typedef struct {
    int32_t kind;
    int32_t source, other, target; /* where vectors begin in the workspace; other: -1, or what a DENSE adds in place of `first` */
    int32_t width, outputs;        /* of the source, of the target */
    const void *first;             /* SELECT: int32 columns; AFFINE: shift; DENSE: bias */
    const double *second;          /* AFFINE: scale; DENSE: weights [width][outputs] */
    double x, y, z;                /* FILL: for NaN, infinity, -infinity; DENSE: x is the factor of what is added */
} serinus_step;

#define NAME(x) plain_##x
#define TARGET
#define TILE 8
#include "mlp_dense.inc"

#if defined(__x86_64__)
#define NAME(x) avx2_##x
#define TARGET __attribute__((target("avx2")))
#define TILE 16
#include "mlp_dense.inc"

#define NAME(x) avx512_##x
#define TARGET __attribute__((target("avx512f")))
#define TILE 32
#include "mlp_dense.inc"
#endif

typedef void dense_function(const serinus_step *, const double *, const double *, double *);

static dense_function *widest_dense(void) {
#if defined(__x86_64__)
    const uint32_t lanes = vector_lanes();
    if (lanes == 16) return avx512_dense;
    if (lanes == 8) return avx2_dense;
#endif
    return plain_dense;
}

/* x times the share of a standard normal below it (PyTorch's GELU); and with tanh in place of erf (approximate='tanh'). */
static inline double gelu(double x) { return x * 0.5 * (1.0 + erf(x * 0.70710678118654752440)); }

static inline double gelu_tanh(double x) {
    return 0.5 * x * (1.0 + tanh(0.79788456080286535588 * (x + 0.044715 * (x * x * x))));
}

/* row: doubles where `wide`, else floats. */
static void run(const serinus_step *step, const void *row, int32_t wide, double *work, dense_function *dense) {
    const double *source = work + step->source;
    double *target = work + step->target;
    const int32_t width = step->width;
    double sum = 0.0;
    switch (step->kind) {
    case SELECT:
        for (int32_t i = 0; i < step->outputs; i++) {
            const int32_t column = ((const int32_t *)step->first)[i];
            target[i] = wide ? ((const double *)row)[column] : (double)((const float *)row)[column];
        }
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
    case SIGMOID:
        for (int32_t i = 0; i < width; i++) target[i] = 1.0 / (1.0 + exp(-source[i]));
        break;
    case TANH:
        for (int32_t i = 0; i < width; i++) target[i] = tanh(source[i]);
        break;
    case GELU:
        for (int32_t i = 0; i < width; i++) target[i] = gelu(source[i]);
        break;
    case GELU_TANH:
        for (int32_t i = 0; i < width; i++) target[i] = gelu_tanh(source[i]);
        break;
    }
}

/* rows: [count][columns], doubles where `wide`, else floats; answers: float64 [count][outputs], the last step's target. */
SERINUS_EXPORT void serinus_mlp_predict(const serinus_step *steps, int32_t count_steps, const void *rows, int32_t wide,
                                        int64_t count, int64_t columns, double *answers) {
    double work[WORKSPACE];
    dense_function *const dense = widest_dense();
    const serinus_step *const last = steps + count_steps - 1;
    const size_t row_bytes = (size_t)columns * (wide ? sizeof(double) : sizeof(float));
    for (int64_t row = 0; row < count; row++) {
        for (int32_t at = 0; at < count_steps; at++)
            run(steps + at, (const char *)rows + (size_t)row * row_bytes, wide, work, dense);
        memcpy(answers + (size_t)row * (size_t)last->outputs, work + last->target, (size_t)last->outputs * sizeof(double));
    }
}
