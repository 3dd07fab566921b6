/* The JSON kernel over bodies from standard input. */
#include <stdio.h>
#include <stdlib.h>
#include "json/json_split.c"
/* Reads records of a 4-byte length and a body from standard input; each body lies at the very end of its own allocation. */
int main(void) {
    uint32_t length;
    long taken = 0;
    while (fread(&length, 4, 1, stdin) == 1) {
        uint8_t *body = malloc(length ? length : 1);
        if (length && fread(body, length, 1, stdin) != 1) return 2;
        for (int room = 0; room < 3; room++) {
            int64_t skeleton_capacity = room == 0 ? 4096 : room == 1 ? (int64_t)length / 2 : 1;
            int64_t values_capacity = room == 0 ? 4 * (int64_t)length + 64 : room == 1 ? 24 : 7;
            split_area area = {malloc(skeleton_capacity + 1), skeleton_capacity, malloc(values_capacity + 1), values_capacity};
            area.skeleton = realloc(area.skeleton, skeleton_capacity ? skeleton_capacity : 1);
            area.values = realloc(area.values, values_capacity);
            taken += serinus_json_take(body, (int32_t)length, &area) >= 0;
            free(area.skeleton);
            free(area.values);
        }
        free(body);
    }
    printf("%ld\n", taken);
    return 0;
}
