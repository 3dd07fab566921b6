/* Runs a library of kernels, opened as the wheel's user opens it, over cases from standard input: `cases LIBRARY < CASES > RESULTS`.
 *
 * A case is a function's number and a number of arrays (uint32 each), then each array as its size in bytes (uint64) and its bytes. A
 * result is a size and bytes likewise. Numbers are little-endian, as on every machine that there are wheels for. */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "trees/forest.h"

enum { JSON_TAKE, FOREST, FOREST64, MLP, LANES };
enum { MOST_ARRAYS = 10 };

/* As in json_split.c and mlp.c. */
typedef struct {
    uint8_t *skeleton;
    int64_t skeleton_capacity;
    uint8_t *values;
    int64_t values_capacity;
    int64_t learnt[4];
} split_area;

typedef struct {
    int32_t kind, source, other, target, width, outputs;
    const void *first;
    const double *second;
    double x, y, z;
} serinus_step;

static void *zeroed(size_t size) {
    void *found = calloc(size + 1, 1);
    if (found == NULL) exit(2);
    return found;
}

static void reply(const void *bytes, uint64_t size) {
    if (fwrite(&size, 8, 1, stdout) != 1 || (size && fwrite(bytes, size, 1, stdout) != 1)) exit(2);
}

static void *symbol(void *library, const char *name) {
    void *found = dlsym(library, name);
    if (found == NULL) {
        fprintf(stderr, "%s\n", dlerror());
        exit(2);
    }
    return found;
}

/* arrays: the body. Replies with what was learnt, the skeleton and the values. */
static void json_take(void *library, uint8_t **arrays, const uint64_t *sizes) {
    int32_t (*take)(const uint8_t *, int32_t, split_area *) = symbol(library, "serinus_json_take");
    split_area area = {.skeleton_capacity = 65536, .values_capacity = 4 * (int64_t)sizes[0] + 64};
    area.skeleton = zeroed(65536);
    area.values = zeroed((size_t)area.values_capacity);
    const int64_t used = take(arrays[0], (int32_t)sizes[0], &area);
    reply(&used, 8);
    if (used >= 0) {
        reply(area.learnt, sizeof area.learnt);
        reply(area.skeleton, (uint64_t)used);
        reply(area.values, (uint64_t)area.learnt[3]);
    }
    free(area.skeleton), free(area.values);
}

/* arrays: the structure, nodes, roots, depths, outputs, base, zeros (float64 alone), sets, rows. Replies with margins and predictions. */
static void walk(void *library, uint8_t **arrays, const uint64_t *sizes, int wide) {
    int32_t (*predict)(const serinus_forest *, const void *, int64_t, void *, void *) =
        symbol(library, wide ? "serinus_forest64_predict" : "serinus_forest_predict");
    serinus_forest forest;
    if (sizes[0] != sizeof forest) exit(3);
    memcpy(&forest, arrays[0], sizeof forest);
    forest.nodes = arrays[1], forest.roots = (void *)arrays[2], forest.depths = (void *)arrays[3], forest.outputs = (void *)arrays[4];
    forest.base = arrays[5], forest.zeros = wide ? arrays[6] : NULL, forest.vectors = NULL;
    forest.sets = sizes[7] ? (void *)arrays[7] : NULL, forest.complete = NULL, forest.places = NULL, forest.lanes = 0;
    const size_t item = wide ? sizeof(double) : sizeof(float);
    const int64_t count = (int64_t)(sizes[8] / (item * forest.columns));
    const size_t size = (size_t)count * forest.groups * item;
    void *margins = zeroed(size), *predictions = zeroed(size);
    if (predict(&forest, arrays[8], count, margins, predictions) != 0) exit(4);
    reply(margins, size), reply(predictions, size);
    free(margins), free(predictions);
}

/* arrays: the steps, whose pointers are places in the second array, counted from 1; that array; rows; their columns. */
static void mlp(void *library, uint8_t **arrays, const uint64_t *sizes) {
    void (*predict)(const serinus_step *, int32_t, const void *, int32_t, int64_t, int64_t, double *) =
        symbol(library, "serinus_mlp_predict");
    serinus_step *steps = (void *)arrays[0];
    const size_t count = sizes[0] / sizeof *steps;
    if (count * sizeof *steps != sizes[0]) exit(3);
    for (size_t i = 0; i < count; i++) {
        const uintptr_t first = (uintptr_t)steps[i].first, second = (uintptr_t)steps[i].second;
        steps[i].first = first ? arrays[1] + first - 1 : NULL;
        steps[i].second = second ? (const double *)(arrays[1] + second - 1) : NULL;
    }
    int64_t columns;
    memcpy(&columns, arrays[3], sizeof columns);
    const int64_t rows = (int64_t)(sizes[2] / sizeof(float)) / columns;
    double *answers = zeroed((size_t)rows * sizeof *answers);
    predict(steps, (int32_t)count, arrays[2], 0, rows, columns, answers);
    reply(answers, (uint64_t)rows * sizeof *answers);
    free(answers);
}

int main(int count, char **names) {
    void *library = count == 2 ? dlopen(names[1], RTLD_NOW) : NULL;
    if (library == NULL) {
        fprintf(stderr, "%s\n", count == 2 ? dlerror() : "name one library");
        return 2;
    }
    uint32_t head[2];
    while (fread(head, sizeof head, 1, stdin) == 1) {
        uint8_t *arrays[MOST_ARRAYS] = {0};
        uint64_t sizes[MOST_ARRAYS] = {0};
        if (head[1] > MOST_ARRAYS) return 3;
        for (uint32_t i = 0; i < head[1]; i++) {
            if (fread(&sizes[i], 8, 1, stdin) != 1) return 3;
            arrays[i] = zeroed(sizes[i]);
            if (sizes[i] && fread(arrays[i], sizes[i], 1, stdin) != 1) return 3;
        }
        switch (head[0]) {
        case JSON_TAKE: json_take(library, arrays, sizes); break;
        case FOREST: walk(library, arrays, sizes, 0); break;
        case FOREST64: walk(library, arrays, sizes, 1); break;
        case MLP: mlp(library, arrays, sizes); break;
        case LANES: {
            uint32_t (*lanes)(void) = symbol(library, "serinus_forest_lanes");
            const uint32_t found = lanes();
            reply(&found, sizeof found);
            break;
        }
        default: return 3;
        }
        for (uint32_t i = 0; i < head[1]; i++) free(arrays[i]);
    }
    return 0;
}
