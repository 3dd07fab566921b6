/* What a client may send to the native front without anybody's judgement: whole HTTP/2 frames (RFC 9113, 4.1), and in their DATA plain
 * messages within the limit (gRPC over HTTP/2, "Length-Prefixed-Message"), which may go on over any number of frames.
 *
 * Everything else is declined, and left with all that follows to `FrameGuard` (server/grpc/relays/size_filter.py), which knows what to do
 * with it. What both know they must judge alike: tests/grpc/test_native_relay_fuzz.py compares them. */
#ifndef SERINUS_FRAME_SCAN_H
#define SERINUS_FRAME_SCAN_H

#include "../kernels.h"

#include <stdlib.h>
#include <string.h>

enum {
    SCAN_HEAD = 9,
    SCAN_PREFIX = 5,       /* compressed flag and length of a message */
    SCAN_FRAME = 16384,    /* SETTINGS_MAX_FRAME_SIZE's default, which the front never raises (RFC 9113, 6.5.2) */
    SCAN_MESSAGES = 128,   /* unfinished ones of one connection; who has more is declined */
    SCAN_DATA = 0,
    SCAN_HEADERS = 1,
    SCAN_RST_STREAM = 3,
    SCAN_END_STREAM = 1,
    SCAN_PADDED = 8,
};

static const uint8_t SCAN_PREFACE[24] = {'P', 'R', 'I', ' ', '*', ' ', 'H', 'T', 'T', 'P', '/', '2', '.', '0', '\r', '\n',
                                         '\r', '\n', 'S', 'M', '\r', '\n', '\r', '\n'};
/* The header that says of messages that they are deflated, as grpc-core writes it (server/grpc/deflate.py). */
static const uint8_t SCAN_DEFLATE[22] = {'\r', 'g', 'r', 'p', 'c', '-', 'e', 'n', 'c', 'o', 'd',
                                         'i', 'n', 'g', 7, 'd', 'e', 'f', 'l', 'a', 't', 'e'};

typedef struct {
    uint32_t stream, remaining; /* bytes of the message that are to come, at least one */
} scan_message;

typedef struct {
    int64_t limit; /* largest message, bytes */
    scan_message *messages; /* SCAN_MESSAGES of them; NULL: none is unfinished */
    int32_t count;
    uint8_t has_begun;   /* the preface has passed */
    uint8_t has_data;    /* a DATA frame has */
    uint8_t is_declined; /* what comes next is not for here, for good */
} frame_scan;

static inline uint32_t scan_number(const uint8_t *at) {
    return (uint32_t)at[0] << 24 | (uint32_t)at[1] << 16 | (uint32_t)at[2] << 8 | at[3];
}

static inline scan_message *scan_find(const frame_scan *scan, uint32_t stream) {
    for (int32_t i = 0; i < scan->count; i++)
        if (scan->messages[i].stream == stream) return scan->messages + i;
    return NULL;
}

static inline void scan_forget(frame_scan *scan, scan_message *message) {
    if (message == NULL) return;
    *message = scan->messages[--scan->count];
    if (scan->count) return;
    free(scan->messages);
    scan->messages = NULL;
}

static inline int scan_note(frame_scan *scan, uint32_t stream, uint32_t remaining) {
    if (scan->count == SCAN_MESSAGES) return 0;
    if (scan->messages == NULL && (scan->messages = malloc(SCAN_MESSAGES * sizeof *scan->messages)) == NULL) return 0;
    scan->messages[scan->count++] = (scan_message){stream, remaining};
    return 1;
}

/* Whether all of a DATA frame is of plain messages; a frame that is not has changed nothing. */
static inline int scan_data(frame_scan *scan, uint32_t stream, uint8_t flags, const uint8_t *payload, size_t size) {
    if (flags & SCAN_PADDED) return 0;
    scan_message *message = scan_find(scan, stream);
    uint32_t left = message == NULL ? 0 : message->remaining;
    for (size_t at = 0; at < size;) {
        if (left == 0) {
            if (size - at < SCAN_PREFIX || payload[at] != 0) return 0;
            left = scan_number(payload + at + 1);
            if (left > scan->limit) return 0;
            at += SCAN_PREFIX;
        }
        const size_t taken = left < size - at ? left : size - at;
        left -= (uint32_t)taken;
        at += taken;
    }
    if (left == 0 || flags & SCAN_END_STREAM) /* with the stream's end: a message cut short, which the front answers */
        scan_forget(scan, message);
    else if (message != NULL)
        message->remaining = left;
    else if (!scan_note(scan, stream, left))
        return 0;
    scan->has_data = 1;
    return 1;
}

/* How many of these bytes may pass, unchanged. The rest is the beginning of a frame, to be given again with what follows, or, with
 * `is_declined`, begins with a frame that is not for here. */
static inline size_t frame_scan_pass(frame_scan *scan, const uint8_t *data, size_t length) {
    size_t at = 0;
    if (scan->is_declined) return 0;
    if (!scan->has_begun) {
        const size_t known = length < sizeof SCAN_PREFACE ? length : sizeof SCAN_PREFACE;
        scan->is_declined = memcmp(data, SCAN_PREFACE, known) != 0;
        if (scan->is_declined || known < sizeof SCAN_PREFACE) return 0;
        scan->has_begun = 1;
        at = known;
    }
    while (length - at >= SCAN_HEAD) {
        const uint8_t *frame = data + at;
        const size_t size = scan_number(frame) >> 8;
        const uint8_t kind = frame[3], flags = frame[4];
        const uint32_t stream = scan_number(frame + 5);
        if (size > SCAN_FRAME || stream >> 31) { /* no size that may be; a bit that nobody sets (RFC 9113, 4.1) */
            scan->is_declined = 1;
            return at;
        }
        if (size > length - at - SCAN_HEAD) return at;
        if (kind == SCAN_DATA) {
            scan->is_declined = !scan_data(scan, stream, flags, frame + SCAN_HEAD, size);
        } else if (kind == SCAN_HEADERS) {
            scan->is_declined = memmem(frame, SCAN_HEAD + size, SCAN_DEFLATE, sizeof SCAN_DEFLATE) != NULL;
            if (!scan->is_declined && flags & SCAN_END_STREAM) scan_forget(scan, scan_find(scan, stream));
        } else if (kind == SCAN_RST_STREAM) {
            scan_forget(scan, scan_find(scan, stream));
        }
        if (scan->is_declined) return at;
        at += SCAN_HEAD + size;
    }
    return at;
}

#endif
