/* libFuzzer target: what `serinus_json_take` makes of any body stays within the body and within what it was lent.
 *
 * The first byte chooses how much memory is lent; the rest is the body. All of it ends where its allocation ends, so that
 * AddressSanitizer sees the first byte too many. */
#include "json/json_split.c"

#include <stdlib.h>

static void hold(int holds) {
    if (!holds) abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < 1) return 0;
    const int room = data[0] % 3;
    const size_t length = size - 1;
    const int64_t skeleton_bytes = room == 0 ? 2 * (int64_t)length + 64 : room == 1 ? (int64_t)length / 2 : 1;
    const int64_t values_bytes = room == 0 ? 4 * (int64_t)length + 64 : room == 1 ? 24 : 7;
    uint8_t *body = malloc(length ? length : 1);
    memcpy(body, data + 1, length);
    split_area area = {.skeleton = malloc((size_t)skeleton_bytes + !skeleton_bytes), .skeleton_capacity = skeleton_bytes,
                       .values = malloc((size_t)values_bytes), .values_capacity = values_bytes};
    const int32_t used = serinus_json_take(body, (int32_t)length, &area);
    hold(used >= -1 && used <= skeleton_bytes);
    if (used >= 0) {
        hold(area.values_used >= 0 && area.values_used <= values_bytes && area.tensors >= 0);
        hold(area.id_length >= -1 && area.id_offset >= 0 && area.id_offset + area.id_length <= (int64_t)length);
    }
    free(body), free(area.skeleton), free(area.values);
    return 0;
}
