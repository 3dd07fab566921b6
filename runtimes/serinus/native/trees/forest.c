/* Walks of tree ensembles over flat arrays: margins and predictions equal to those of XGBoost's own CPU predictor.
 *
 * Theory of operation. Rows are copied, a block at a time, into a padded buffer: a missing value is NaN, and one more column is
 * always NaN (see forest.h for why). A block that holds a missing value is padded anew, with every column twice: in the first copy
 * a missing value is NaN, which goes right, in the second one it is -infinity, which goes left. A node of such a block reads the
 * copy that takes a missing value its default way, so that neither kind of block costs a test for it. A block's rows go down one
 * tree after the other, so that the tree's nodes stay in the first-level cache while they are used. Rows enough to fill vectors are
 * left to forest_vector.c where the machine and the trees allow it. */
#include "forest.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
    LANES = 8,             /* walks side by side */
    BLOCK_ROWS = 64,       /* rows of a block: their features and one tree fit the first-level cache (32 KiB and more) */
    BUFFER_FLOATS = 8192,  /* 32 KiB on the stack; wider rows take the heap */
};

#define REAL float
#define RIGHT(forest, node, x) (!((x) < (node)->value))
#define ADD(forest, sum, leaf) (*(sum) += (leaf)->value)
#define ONCE(node) ((node)->feature >> 1)
#define TWICE(node) ((node)->feature)

#define NODE serinus_narrow_node
#define NAME(x) narrow_##x
#define COLUMN ONCE
#include "forest_walk.inc"
#define NAME(x) narrow_missing_##x
#define COLUMN TWICE
#include "forest_walk.inc"
#undef NODE

#define NODE serinus_wide_node
#define NAME(x) wide_##x
#define COLUMN ONCE
#include "forest_walk.inc"
#define NAME(x) wide_missing_##x
#define COLUMN TWICE
#include "forest_walk.inc"

typedef void (*row_walk)(const serinus_forest *, const float *, float *);
typedef void (*block_walk)(const serinus_forest *, const float *, size_t, int64_t, float *);

/* [wide][missing] */
static const row_walk row_walks[2][2] = {{narrow_row, narrow_missing_row}, {wide_row, wide_missing_row}};
static const block_walk block_walks[2][2] = {{narrow_block, narrow_missing_block}, {wide_block, wide_missing_block}};

/* Copy one row, make its missing values NaN, and pad it. Returns 1 where a value is missing. */
static int pad(const serinus_forest *forest, const float *row, float *padded) {
    const uint32_t columns = forest->columns;
    int missing = 0;
    if (forest->other_missing) {
        for (uint32_t i = 0; i < columns; i++) {
            const float value = row[i] == forest->missing ? NAN : row[i];
            padded[i] = value;
            missing |= value != value;
        }
    } else {
        for (uint32_t i = 0; i < columns; i++) {
            padded[i] = row[i];
            missing |= row[i] != row[i];
        }
    }
    padded[columns] = NAN;
    return missing;
}

/* Copy one row with every column twice; see above. */
static void pad_twice(const serinus_forest *forest, const float *row, float *padded) {
    const uint32_t columns = forest->columns;
    for (uint32_t i = 0; i < columns; i++) {
        const float value = row[i];
        const int missing = (value != value) | (forest->other_missing & (value == forest->missing));
        padded[2 * i] = missing ? NAN : value;
        padded[2 * i + 1] = missing ? -INFINITY : value;
    }
    padded[2 * columns] = padded[2 * columns + 1] = NAN;
}

/* XGBoost's sigmoid in float32, its bounds included (src/common/math.h). */
static float sigmoid(float x) {
    const float negated = -x < 88.7f ? -x : 88.7f;
    return 1.0f / (expf(negated) + 1.0f + 1e-16f);
}

/* XGBoost's softmax: exponents in float32, their sum in float64 (src/common/math.h). */
static void softmax(const float *margins, float *predictions, uint32_t groups) {
    float largest = margins[0];
    double sum = 0.0;
    for (uint32_t i = 1; i < groups; i++) largest = fmaxf(margins[i], largest);
    for (uint32_t i = 0; i < groups; i++) {
        predictions[i] = expf(margins[i] - largest);
        sum += predictions[i];
    }
    for (uint32_t i = 0; i < groups; i++) predictions[i] /= (float)sum;
}

static void apply_link(const serinus_forest *forest, const float *margins, int64_t count, float *predictions) {
    const int64_t values = count * (int64_t)forest->groups;
    switch (forest->link) {
    case SERINUS_LINK_SIGMOID:
        for (int64_t i = 0; i < values; i++) predictions[i] = sigmoid(margins[i]);
        break;
    case SERINUS_LINK_EXP:
        for (int64_t i = 0; i < values; i++) predictions[i] = expf(margins[i]);
        break;
    case SERINUS_LINK_HINGE:
        for (int64_t i = 0; i < values; i++) predictions[i] = margins[i] > 0.0f ? 1.0f : 0.0f;
        break;
    case SERINUS_LINK_SOFTMAX:
        for (int64_t i = 0; i < values; i += forest->groups) softmax(margins + i, predictions + i, forest->groups);
        break;
    default:
        if (predictions != margins) memcpy(predictions, margins, (size_t)values * sizeof(float));
    }
}

int32_t serinus_forest_predict(const serinus_forest *forest, const void *rows, int64_t count, void *margins,
                               void *predictions) {
    float buffer[BUFFER_FLOATS];
    const float *source = rows;
    int64_t walked = 0;
    if (forest->lanes && count >= SERINUS_SET_ROWS) {
        walked = serinus_forest_walk_sets(forest, source, count, margins);
        if (walked < 0) return -1;
    }
    const size_t columns = forest->columns, groups = forest->groups;
    const size_t fit = BUFFER_FLOATS / (2 * (columns + 1));
    /* Fewer rows a block where they are wide, but a full set of lanes. */
    const int64_t block = fit >= BLOCK_ROWS ? BLOCK_ROWS : fit >= LANES ? (int64_t)(fit / LANES * LANES) : LANES;
    float *x = buffer;
    if (fit < LANES) {
        x = malloc((size_t)block * 2 * (columns + 1) * sizeof(float));
        if (x == NULL) return -1;
    }
    const int wide = forest->wide != 0;
    for (int64_t start = walked; start < count; start += block) {
        const int64_t taken = count - start < block ? count - start : block;
        const float *own = source + (size_t)start * columns;
        float *sums = (float *)margins + (size_t)start * groups;
        size_t width = columns + 1;
        int missing = 0;
        for (int64_t row = 0; row < taken; row++) {
            missing |= pad(forest, own + (size_t)row * columns, x + (size_t)row * width);
            memcpy(sums + (size_t)row * groups, forest->base, groups * sizeof(float));
        }
        if (missing) {
            width *= 2;
            for (int64_t row = 0; row < taken; row++)
                pad_twice(forest, own + (size_t)row * columns, x + (size_t)row * width);
        }
        /* The last rows, too few for all lanes, go down several trees side by side instead. */
        const int64_t whole = taken / LANES * LANES;
        if (whole) block_walks[wide][missing](forest, x, width, whole, sums);
        for (int64_t row = whole; row < taken; row++)
            row_walks[wide][missing](forest, x + (size_t)row * width, sums + (size_t)row * groups);
    }
    if (x != buffer) free(x);
    if (predictions != NULL) apply_link(forest, margins, count, predictions);
    return 0;
}

void serinus_forest_margin_of(uint32_t link, float *values, int64_t count) {
    for (int64_t i = 0; i < count; i++) {
        if (link == SERINUS_LINK_SIGMOID) {
            const float bounded = fminf(fmaxf(values[i], 1e-6f), 1.0f - 1e-6f);
            values[i] = -logf(1.0f / bounded - 1.0f);
        } else if (link == SERINUS_LINK_EXP) {
            values[i] = logf(values[i]);
        }
    }
}
