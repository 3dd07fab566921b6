/* What a ModelInferRequest holds, counted before anybody parses it: an empty submessage takes 50 times the two bytes of its field. */
#include "../kernels.h"

enum { REQUEST, INPUT, OUTPUT, ENTRY, VALUE, CONTENTS, LEVELS };

/* What a field of these numbers, length-delimited, is looked into as; 0: passed over. Numbers: open_inference.proto. */
static const uint8_t WITHIN[LEVELS][8] = {
    [REQUEST] = {0, 0, 0, 0, ENTRY, INPUT, OUTPUT, 0},
    [INPUT] = {0, 0, 0, 0, ENTRY, CONTENTS, 0, 0},
    [OUTPUT] = {0, 0, ENTRY, 0, 0, 0, 0, 0},
    [ENTRY] = {0, 0, VALUE, 0, 0, 0, 0, 0},
};

static const uint8_t *read_varint(const uint8_t *at, const uint8_t *end, uint64_t *value) {
    *value = 0;
    for (int shift = 0; at < end && shift < 64; shift += 7) {
        const uint8_t byte = *at++;
        *value |= (uint64_t)(byte & 0x7f) << shift;
        if (byte < 0x80) return at;
    }
    return NULL;
}

/* Counts fields, packed numbers of variable length, and bytes outside of raw tensors; 0: more than `most` of one of them. */
static int32_t walk(const uint8_t *at, const uint8_t *end, int level, const int64_t *most, int64_t *counts) {
    while (at < end) {
        uint64_t tag, value;
        if (++counts[0] > most[0]) return 0;
        if ((at = read_varint(at, end, &tag)) == NULL) return 1; /* damaged: whoever parses it says so */
        const uint64_t number = tag >> 3;
        switch (tag & 7) {
        case 0:
            if ((at = read_varint(at, end, &value)) == NULL) return 1;
            break;
        case 1:
            if (end - at < 8) return 1;
            at += 8;
            break;
        case 5:
            if (end - at < 4) return 1;
            at += 4;
            break;
        case 2:
            if ((at = read_varint(at, end, &value)) == NULL || value > (uint64_t)(end - at)) return 1;
            if (level != REQUEST || number != 7) {
                const int within = number < 8 ? WITHIN[level][number] : 0;
                if (within && !walk(at, at + value, within, most, counts)) return 0;
                if (!within && (counts[2] += (int64_t)value) > most[2]) return 0;
                if ((level == CONTENTS && number >= 2 && number <= 5) || (level == INPUT && number == 3)) {
                    for (const uint8_t *byte = at; byte < at + value; byte++) counts[1] += *byte < 0x80;
                    if (counts[1] > most[1]) return 0;
                }
            }
            at += value;
            break;
        default: /* groups: what is in them is counted here */
            break;
        }
    }
    return 1;
}

SERINUS_EXPORT int32_t serinus_proto_census(const uint8_t *message, int64_t length, const int64_t *most, int64_t *counts) {
    return walk(message, message + length, REQUEST, most, counts);
}
