/* Walks of tree ensembles in float64: raw scores and predictions equal to those of LightGBM's own predictor, and of others like it.
 *
 * Theory of operation. As forest.c, with what LightGBM does differently (its include/LightGBM/tree.h, src/application/predictor.hpp):
 * a value goes left where it is <= the threshold; values of at most near_zero in size are 0 before anything compares them; zeros
 * count as missing in the columns that say so (zero_as_missing); a node without a default takes a missing value for 0,
 * which is a direction known beforehand; a categorical node looks its whole number up in a set of bits, and all that is not in
 * it goes right. Models with such nodes take a walk of their own, which always reads the twice-padded row. Leaves may hold a vector,
 * one number for each output of the row, which is added whole: one walk where several classes are voted for. */
#include "forest.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
    LANES = 8,
    BLOCK_ROWS = 64,
    BUFFER_DOUBLES = 4096, /* 32 KiB on the stack; wider rows take the heap */
};

static const uint32_t CATEGORY = 0x80000000u;

/* 1 where the category x is not in the node's set; NaN, negative and fractional numbers as LightGBM's cast to int takes them. */
static inline int outside(const serinus_forest *forest, const serinus_node64 *node, double x) {
    if (!(x > -1.0 && x < 32.0 * node->set.words)) return 1;
    const uint32_t category = (uint32_t)(int32_t)x;
    return !(forest->sets[node->set.first + category / 32] >> category % 32 & 1);
}

#define NODE serinus_node64
#define REAL double
#define RIGHT(forest, node, x) (!((x) <= (node)->value))
#define ADD(forest, sum, leaf) (*(sum) += (leaf)->value)

#define NAME(x) plain_##x
#define COLUMN(node) ((node)->feature >> 1)
#include "forest_walk.inc"
#define NAME(x) missing_##x
#define COLUMN(node) ((node)->feature)
#include "forest_walk.inc"

#undef RIGHT
#define RIGHT(forest, node, x) ((node)->feature & CATEGORY ? outside(forest, node, x) : !((x) <= (node)->value))
#define NAME(x) category_##x
#define COLUMN(node) ((node)->feature & ~CATEGORY)
#include "forest_walk.inc"

/* Add a leaf's vector to a row's sums. */
static inline void add_vector(const serinus_forest *forest, const serinus_node64 *leaf, double *sums) {
    const double *vector = forest->vectors + (size_t)leaf->set.first * forest->groups;
    for (uint32_t i = 0; i < forest->groups; i++) sums[i] += vector[i];
}

#undef ADD
#define ADD(forest, sum, leaf) add_vector(forest, leaf, sum)
#define NAME(x) category_vector_##x
#define COLUMN(node) ((node)->feature & ~CATEGORY)
#include "forest_walk.inc"
#undef RIGHT
#define RIGHT(forest, node, x) (!((x) <= (node)->value))
#define NAME(x) vector_##x
#define COLUMN(node) ((node)->feature >> 1)
#include "forest_walk.inc"
#define NAME(x) missing_vector_##x
#define COLUMN(node) ((node)->feature)
#include "forest_walk.inc"

typedef void (*row_walk)(const serinus_forest *, const double *, double *);
typedef void (*block_walk)(const serinus_forest *, const double *, size_t, int64_t, double *);

enum { PLAIN, MISSING, CATEGORIES };
/* [leaves hold vectors][walk] */
static const row_walk row_walks[2][3] = {{plain_row, missing_row, category_row},
                                         {vector_row, missing_vector_row, category_vector_row}};
static const block_walk block_walks[2][3] = {{plain_block, missing_block, category_block},
                                             {vector_block, missing_vector_block, category_vector_block}};

/* One value as it is compared; NaN: it is missing. */
static inline double seen(const serinus_forest *forest, const double *row, uint32_t column) {
    const double value = row[column];
    return fabs(value) <= forest->near_zero ? (forest->zeros[column] ? NAN : 0.0) : value;
}

/* Copy one row and pad it. Returns 1 where a value is missing. */
static int pad(const serinus_forest *forest, const double *row, double *padded) {
    const uint32_t columns = forest->columns;
    int missing = 0;
    for (uint32_t i = 0; i < columns; i++) {
        const double value = seen(forest, row, i);
        padded[i] = value;
        missing |= value != value;
    }
    padded[columns] = NAN;
    return missing;
}

/* Copy one row with every column twice, a missing value as NaN and as -infinity. */
static void pad_twice(const serinus_forest *forest, const double *row, double *padded) {
    const uint32_t columns = forest->columns;
    for (uint32_t i = 0; i < columns; i++) {
        const double value = seen(forest, row, i);
        padded[2 * i] = value;
        padded[2 * i + 1] = value != value ? -INFINITY : value;
    }
    padded[2 * columns] = padded[2 * columns + 1] = NAN;
}

/* LightGBM's Common::Softmax. */
static void softmax(const double *scores, double *predictions, uint32_t groups) {
    double largest = scores[0], sum = 0.0;
    for (uint32_t i = 1; i < groups; i++) largest = scores[i] > largest ? scores[i] : largest;
    for (uint32_t i = 0; i < groups; i++) {
        predictions[i] = exp(scores[i] - largest);
        sum += predictions[i];
    }
    for (uint32_t i = 0; i < groups; i++) predictions[i] /= sum;
}

/* LightGBM's ObjectiveFunction::ConvertOutput. */
static void apply_link(const serinus_forest *forest, const double *scores, int64_t count, double *predictions) {
    const int64_t values = count * (int64_t)forest->groups;
    const double slope = forest->slope, divisor = forest->divisor;
    for (int64_t i = 0; i < values; i++) predictions[i] = scores[i] / divisor;
    switch (forest->link) {
    case SERINUS_LINK_SIGMOID:
        for (int64_t i = 0; i < values; i++) predictions[i] = 1.0 / (1.0 + exp(-slope * predictions[i]));
        break;
    case SERINUS_LINK_EXP:
        for (int64_t i = 0; i < values; i++) predictions[i] = exp(predictions[i]);
        break;
    case SERINUS_LINK_SQUARE:
        for (int64_t i = 0; i < values; i++) predictions[i] *= fabs(predictions[i]);
        break;
    case SERINUS_LINK_LOG1P_EXP:
        for (int64_t i = 0; i < values; i++) predictions[i] = log1p(exp(predictions[i]));
        break;
    case SERINUS_LINK_SOFTMAX:
        for (int64_t i = 0; i < values; i += forest->groups) softmax(predictions + i, predictions + i, forest->groups);
        break;
    default:
        break;
    }
}

int32_t serinus_forest64_predict(const serinus_forest *forest, const void *rows, int64_t count, void *margins,
                                 void *predictions) {
    double buffer[BUFFER_DOUBLES];
    const double *source = rows;
    const size_t columns = forest->columns, groups = forest->groups;
    const size_t fit = BUFFER_DOUBLES / (2 * (columns + 1));
    /* Fewer rows a block where they are wide, but a full set of lanes. */
    const int64_t block = fit >= BLOCK_ROWS ? BLOCK_ROWS : fit >= LANES ? (int64_t)(fit / LANES * LANES) : LANES;
    double *x = buffer;
    if (fit < LANES) {
        x = malloc((size_t)block * 2 * (columns + 1) * sizeof(double));
        if (x == NULL) return -1;
    }
    const int vectors = forest->vectors != NULL;
    for (int64_t start = 0; start < count; start += block) {
        const int64_t taken = count - start < block ? count - start : block;
        const double *own = source + (size_t)start * columns;
        double *sums = (double *)margins + (size_t)start * groups;
        for (int64_t row = 0; row < taken; row++) memcpy(sums + (size_t)row * groups, forest->base, groups * sizeof(double));
        size_t width = columns + 1;
        int walk = forest->sets != NULL ? CATEGORIES : PLAIN;
        if (walk == PLAIN)
            for (int64_t row = 0; row < taken; row++)
                if (pad(forest, own + (size_t)row * columns, x + (size_t)row * width)) walk = MISSING;
        if (walk != PLAIN) {
            width *= 2;
            for (int64_t row = 0; row < taken; row++)
                pad_twice(forest, own + (size_t)row * columns, x + (size_t)row * width);
        }
        const int64_t whole = taken / LANES * LANES;
        if (whole) block_walks[vectors][walk](forest, x, width, whole, sums);
        for (int64_t row = whole; row < taken; row++)
            row_walks[vectors][walk](forest, x + (size_t)row * width, sums + (size_t)row * groups);
    }
    if (x != buffer) free(x);
    if (predictions != NULL) apply_link(forest, margins, count, predictions);
    return 0;
}
