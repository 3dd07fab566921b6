/* Dense networks over vectors that end where their allocations end, in every instruction set that there is; each width must give the
 * bits of a plain loop, and a workspace filled to its last number must hold. */
#include "dense/mlp.c"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static double number(uint32_t *state) {
    *state = *state * 1664525u + 1013904223u;
    return (double)(int32_t)*state / (1 << 28);
}

static int dense_of(dense_function *dense, int32_t width, int32_t outputs) {
    uint32_t state = (uint32_t)(width * 1000 + outputs);
    double *source = malloc(sizeof(double) * (size_t)width), *weights = malloc(sizeof(double) * (size_t)(width * outputs));
    double *bias = malloc(sizeof(double) * (size_t)outputs), *target = malloc(sizeof(double) * (size_t)outputs);
    for (int32_t i = 0; i < width; i++) source[i] = number(&state);
    for (int32_t i = 0; i < width * outputs; i++) weights[i] = number(&state);
    for (int32_t i = 0; i < outputs; i++) bias[i] = number(&state);
    const serinus_step step = {.kind = DENSE, .other = -1, .width = width, .outputs = outputs, .first = bias, .second = weights, .x = 0.5};
    dense(&step, source, bias, target);
    int wrong = 0;
    for (int32_t k = 0; k < outputs; k++) {
        double sum = step.x * bias[k];
        for (int32_t i = 0; i < width; i++) sum += source[i] * weights[i * outputs + k];
        wrong |= memcmp(&sum, target + k, sizeof sum) != 0;
    }
    free(source), free(weights), free(bias), free(target);
    if (wrong) printf("a dense step of %d by %d differs\n", width, outputs);
    return wrong;
}

/* Steps of every kind; `wide` fills the workspace to its last number. */
static void network(int64_t rows, int32_t wide) {
    int32_t *columns = malloc(sizeof *columns * (size_t)wide);
    double *shift = malloc(sizeof *shift * (size_t)wide), *weights = malloc(sizeof *weights * (size_t)(wide * 3));
    double *bias = malloc(sizeof *bias * 3);
    for (int32_t i = 0; i < wide; i++) columns[i] = i % 5, shift[i] = i % 3;
    for (int32_t i = 0; i < wide * 3; i++) weights[i] = i % 7 - 3;
    for (int i = 0; i < 3; i++) bias[i] = i;
    const int32_t hidden = 5 * wide, last = hidden + 3 * 2;
    const serinus_step steps[] = {
        {.kind = SELECT, .other = -1, .target = 0, .width = wide, .outputs = wide, .first = columns},
        {.kind = ASINH, .source = 0, .other = -1, .target = wide, .width = wide, .outputs = wide},
        {.kind = AFFINE, .source = wide, .other = -1, .target = 2 * wide, .width = wide, .outputs = wide, .first = shift, .second = shift},
        {.kind = FILL, .source = 2 * wide, .other = -1, .target = 3 * wide, .width = wide, .outputs = wide, .x = 1, .y = 2, .z = 3},
        {.kind = RELU, .source = 3 * wide, .other = -1, .target = 4 * wide, .width = wide, .outputs = wide},
        {.kind = DENSE, .source = 4 * wide, .other = -1, .target = hidden, .width = wide, .outputs = 3, .first = bias, .second = weights, .x = 1},
        {.kind = DENSE, .source = 0, .other = hidden, .target = hidden + 3, .width = wide, .outputs = 3, .second = weights, .x = -1},
        {.kind = NORM, .source = hidden + 3, .other = -1, .target = last, .width = 3, .outputs = 1},
        {.kind = LOG, .source = last, .other = -1, .target = last + 1, .width = 1, .outputs = 1},
    };
    float *features = malloc(sizeof *features * (size_t)(rows * 5 + !rows));
    double *answers = malloc(sizeof *answers * (size_t)(rows + !rows));
    for (int64_t i = 0; i < rows * 5; i++) features[i] = i % 11 ? (float)(i % 4) - 2 : i % 2 ? NAN : INFINITY;
    serinus_mlp_predict(steps, sizeof steps / sizeof steps[0], features, 0, rows, 5, answers);
    free(columns), free(shift), free(weights), free(bias), free(features), free(answers);
}

int main(void) {
    int wrong = 0;
    for (int32_t outputs = 1; outputs < 80; outputs++)
        for (int32_t width = 1; width < 40; width += 3) {
            wrong |= dense_of(plain_dense, width, outputs);
#if defined(__x86_64__)
            if (vector_lanes() >= 8) wrong |= dense_of(avx2_dense, width, outputs);
            if (vector_lanes() >= 16) wrong |= dense_of(avx512_dense, width, outputs);
#endif
        }
    for (int64_t rows = 0; rows < 20; rows += 3)
        for (int32_t wide = 1; wide <= (WORKSPACE - 8) / 5; wide += wide == 1 ? 1 : (WORKSPACE - 8) / 5 - 2) network(rows, wide);
    return wrong;
}
