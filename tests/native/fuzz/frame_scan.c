/* libFuzzer target: what passes of any bytes is within them, and the same however they are cut.
 *
 * The first byte chooses the limit of a message, the second how the rest is cut. Every piece ends where its allocation ends, so that
 * AddressSanitizer sees the first byte too many. */
#define _GNU_SOURCE
#include "frames/frame_scan.h"

static void hold(int holds) {
    if (!holds) abort();
}

/* Gives the bytes in pieces of at most `most`, what did not pass again with what follows; how many passed. */
static size_t passed_in_pieces(frame_scan *scan, const uint8_t *data, size_t length, size_t most) {
    size_t passed = 0, end = 0;
    while (end < length && !scan->is_declined) {
        end += length - end < most ? length - end : most;
        uint8_t *piece = malloc(end - passed);
        memcpy(piece, data + passed, end - passed);
        const size_t now = frame_scan_pass(scan, piece, end - passed);
        free(piece);
        hold(now <= end - passed);
        hold(scan->count >= 0 && scan->count <= SCAN_MESSAGES && (scan->messages != NULL) == (scan->count > 0));
        for (int32_t i = 0; i < scan->count; i++) hold(scan->messages[i].remaining > 0 && scan->messages[i].remaining <= scan->limit);
        passed += now;
    }
    return passed;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < 2) return 0;
    const int64_t limit = data[0] % 4 == 3 ? (int64_t)1 << 33 : 100 << 8 * (data[0] % 4);
    frame_scan whole = {.limit = limit}, cut = {.limit = limit};
    const size_t passed = passed_in_pieces(&whole, data + 2, size - 2, size);
    hold(passed_in_pieces(&cut, data + 2, size - 2, 1 + data[1] % 40) == passed);
    hold(whole.is_declined == cut.is_declined && whole.has_begun == cut.has_begun && whole.has_data == cut.has_data);
    hold(whole.count == cut.count);
    hold(!whole.count || memcmp(whole.messages, cut.messages, (size_t)whole.count * sizeof *whole.messages) == 0);
    free(whole.messages), free(cut.messages);
    return 0;
}
