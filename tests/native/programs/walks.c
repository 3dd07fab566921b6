/* Every walk over arrays that end where their allocations end. */
#include "trees/forest.h"
#include <math.h>
#include <stdlib.h>
int main(void) {
    for (uint32_t wide = 0; wide < 2; wide++)
        for (uint32_t columns = 1; columns < 20000; columns = columns * 3 + 1)
            for (int64_t rows = 0; rows < 140; rows = rows * 2 + 1) {
                enum { TREES = 11 };
                uint32_t roots[TREES], depths[TREES], outputs[TREES];
                serinus_narrow_node *narrow = calloc(3 * TREES, sizeof *narrow);
                serinus_node64 *exact = calloc(3 * TREES, sizeof *exact);
                serinus_wide_node *broad = calloc(3 * TREES, sizeof *broad);
                for (uint32_t tree = 0; tree < TREES; tree++) {
                    roots[tree] = 3 * tree; depths[tree] = 1; outputs[tree] = tree % 2;
                    for (uint32_t node = 0; node < 3; node++) {
                        uint32_t column = node ? columns : (tree * 7) % columns;
                        uint32_t feature = 2 * column + (node ? 0 : tree % 2), at = 3 * tree + node;
                        narrow[at].feature = (uint16_t)feature;
                        exact[at].feature = broad[at].feature = feature;
                        narrow[at].step = (int16_t)(node ? -1 : 1);
                        exact[at].step = broad[at].step = node ? -1 : 1;
                        narrow[at].value = broad[at].value = (float)node;
                        exact[at].value = node;
                        if (wide && node == 0 && tree % 3 == 0) {
                            exact[at].feature = 2 * column | 0x80000000u;
                            exact[at].set.first = tree % 2;
                            exact[at].set.words = 1;
                        }
                    }
                }
                float base[2] = {0, 0};
                double exact_base[2] = {0, 0};
                double *vectors = calloc(2 * 2, sizeof *vectors);
                uint32_t *sets = calloc(2, sizeof *sets);
                uint8_t *zeros = calloc(columns, 1);
                double *y = malloc(sizeof(double) * (size_t)(rows * columns + !rows));
                double *exactly = malloc(sizeof(double) * (size_t)(rows * 2 + !rows));
                float *x = malloc(sizeof(float) * (size_t)(rows * columns + !rows));
                float *out = malloc(sizeof(float) * (size_t)(rows * 2 + !rows));
                for (int64_t i = 0; i < rows * (int64_t)columns; i++) {
                    x[i] = i % 5 ? (float)(i % 3) - 1 : NAN;
                    y[i] = i % 7 ? x[i] * 32 : i % 2 ? 1e300 : -INFINITY;
                }
                const void *nodes = wide ? (void *)broad : (void *)narrow;
                serinus_forest forest = {.nodes = nodes, .roots = roots, .depths = depths, .outputs = outputs, .base = base,
                                         .trees = TREES, .groups = 2, .columns = columns, .wide = wide,
                                         .link = (uint32_t)(rows % 5), .slope = 1, .divisor = 2};
                if (serinus_forest_predict(&forest, x, rows, out, out) != 0) return 1;
                /* By vectors: complete trees of 3 to 8 levels, and the 32 words that a look-up may read behind them. */
                uint32_t levels[TREES], words = 0;
                uint64_t places[TREES];
                for (uint32_t tree = 0; tree < TREES; tree++) {
                    levels[tree] = 3 + tree % 6;
                    places[tree] = words;
                    words += 3u << levels[tree];
                }
                uint32_t *complete = calloc(words + 32, sizeof *complete);
                for (uint32_t word = 0; word < words; word++) complete[word] = word * 7 % (2 * columns);
                forest.depths = levels; forest.complete = complete; forest.places = places;
                for (uint32_t lanes = 8; lanes <= serinus_forest_lanes(); lanes *= 2) {
                    forest.lanes = lanes;
                    if (serinus_forest_walk_sets(&forest, x, rows, out) < 0) return 1;
                }
                free(complete);
                forest.depths = depths; forest.lanes = 0;
                forest.nodes = exact; forest.base = exact_base; forest.near_zero = 1e-35f; forest.zeros = zeros; forest.sets = wide ? sets : NULL;
                forest.link = (uint32_t)(rows % 7);
                if (serinus_forest64_predict(&forest, y, rows, exactly, exactly) != 0) return 1;
                for (uint32_t node = 0; node < 3 * TREES; node++)
                    if (node % 3) exact[node].set.first = node % 2, exact[node].set.words = 0;
                forest.vectors = vectors;
                uint32_t *first = calloc(TREES, sizeof *first);
                forest.outputs = first;
                if (serinus_forest64_predict(&forest, y, rows, exactly, exactly) != 0) return 1;
                free(first); free(vectors);
                free(narrow); free(broad); free(x); free(out);
                free(exact); free(sets); free(zeros); free(y); free(exactly);
            }
    return 0;
}
