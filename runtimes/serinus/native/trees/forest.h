/* Layout of a forest as the Python side builds it (forest.py) and forest.c walks it. */
#ifndef SERINUS_FOREST_H
#define SERINUS_FOREST_H

#include "kernels.h"

/* Nodes of one tree lie breadth first, siblings side by side: the right child is the left one's neighbour.
 *
 *   next = node + step + !(x[feature] < value)
 *
 * (forest64.c: `<=`) and a missing x (NaN) goes left where default_left is set; such a node's value is a number above -infinity.
 * A leaf reads column `columns` of the padded row, which always holds NaN, with default_left clear and step -1: it goes
 * "right", back to itself. So a walk needs no test for the leaf: it takes as many steps as the tree is deep. The leaf's output
 * lies in `value`, or is a vector that `set.first` numbers (forest64.c). */
typedef struct {
    float value;
    uint16_t feature; /* twice the column, + 1: default_left */
    int16_t step;     /* left child's index less the own one */
} serinus_narrow_node;

typedef struct {
    float value;
    uint32_t feature; /* twice the column, + 1: default_left */
    int32_t step;
} serinus_wide_node;

/* A complete tree of depth d (3 to 8), for forest_vector.c: three runs of 2^d words of 32 bits.
 *
 *   thresholds [2^d - 1, and one unused]   the children of node i are 2i + 1 and 2i + 2
 *   features [2^d - 1, and one unused]     twice the column, + 1: default_left
 *   outputs [2^d]                          of the leaves, from left to right
 *
 * Below a leaf that lies higher up every node is there, compares anything, and leads to that leaf's output.
 * What follows the last tree are 32 words that a look-up may read and does not use. */

/* A node of forest64.c. With its high bit of `feature` set it compares nothing: a category goes left where its bit is set. */
typedef struct {
    union {
        double value;
        struct {
            uint32_t first; /* where in `sets` the node's words begin */
            uint32_t words;
        } set;
    };
    uint32_t feature; /* twice the column, + 1: default_left */
    int32_t step;
} serinus_node64;

typedef struct {
    const void *nodes;       /* serinus_narrow_node or serinus_wide_node; forest64.c: serinus_node64 */
    const uint32_t *roots;   /* [trees] index of each tree's first node */
    const uint32_t *depths;  /* [trees] steps from the root to the deepest leaf */
    const uint32_t *outputs; /* [trees] the output (class, target) that each tree adds to */
    const void *base;        /* [groups] what each output starts from, margin; floats, forest64.c: doubles */
    const uint8_t *zeros;    /* forest64.c: [columns] 1 where 0 counts as missing */
    const uint32_t *sets;    /* forest64.c: the sets of categories, one bit each; NULL: no node has one */
    const double *vectors;   /* forest64.c: [vectors][groups], what leaves hold whose `set.first` is the vector's number; NULL: they hold `value` */
    const uint32_t *complete; /* forest.c: the trees laid out complete; NULL: they are not */
    const uint64_t *places;   /* [trees] word of `complete` that each tree begins at */
    uint32_t trees;
    uint32_t groups;  /* outputs of a row */
    uint32_t columns; /* features of a row */
    uint32_t wide;    /* 1: nodes are serinus_wide_node */
    uint32_t link;    /* what maps margins to predictions, SERINUS_LINK_* */
    uint32_t other_missing; /* 1: `missing` counts as missing beside NaN */
    float missing;
    uint32_t lanes; /* forest.c: rows that forest_vector.c walks side by side, at most serinus_forest_lanes(); 0: none */
    double slope;   /* forest64.c: factor of the margin in the sigmoid */
    double divisor; /* forest64.c: of the sum, before the link */
    double near_zero; /* forest64.c: values of at most this size are 0 */
} serinus_forest;

enum {
    SERINUS_LINK_IDENTITY = 0,
    SERINUS_LINK_SIGMOID = 1,
    SERINUS_LINK_EXP = 2,
    SERINUS_LINK_HINGE = 3,
    SERINUS_LINK_SOFTMAX = 4,
    SERINUS_LINK_SQUARE = 5,   /* forest64.c: x * |x| */
    SERINUS_LINK_LOG1P_EXP = 6 /* forest64.c: log(1 + exp(x)) */
};

enum {
    SERINUS_SET_ROWS = 4,    /* rows worth a set of lanes; fewer are quicker one by one */
    SERINUS_SET_GROUPS = 64, /* outputs of a row that forest_vector.c takes at most */
};

/* Rows that this machine's vector instructions can walk side by side: 16, 8, or 0 without any. */
SERINUS_EXPORT uint32_t serinus_forest_lanes(void);

/* Walk as many of the rows as fill sets of lanes, from the first on. Returns how many, or -1: no memory. Inner use. */
int64_t serinus_forest_walk_sets(const serinus_forest *forest, const float *rows, int64_t count, float *margins);

/* Sum the trees for `count` rows of `columns` floats (forest64: doubles), C order.
 *
 * margins: [count, groups], written. predictions: [count, groups], written by the forest's link unless NULL; may be `margins`.
 * Both are floats (forest64: doubles).
 * Returns 0, or -1 where memory for a row wider than the stack's buffer cannot be had. Safe from several threads at once. */
SERINUS_EXPORT int32_t serinus_forest_predict(const serinus_forest *forest, const void *rows, int64_t count, void *margins,
                                              void *predictions);
SERINUS_EXPORT int32_t serinus_forest64_predict(const serinus_forest *forest, const void *rows, int64_t count, void *margins,
                                                void *predictions);

/* Invert a link in place, in float32: what XGBoost does to a base_score (Objective::ProbToMargin). */
SERINUS_EXPORT void serinus_forest_margin_of(uint32_t link, float *values, int64_t count);

#endif
