/* What a JSON text holds, counted before anybody parses it: a parsed array takes 30 times the three bytes of "[],". */
#include <stdbool.h>

#include "../kernels.h"

/* Count brackets and commas outside of strings, and stop where one count passes its limit.

   counts[0]: arrays, and objects, which count twice since a parsed one takes twice as much.
   counts[1]: commas, one less than the values of each array.
   Returns whether both are within `most`. The text need not be JSON. */
SERINUS_EXPORT int32_t serinus_json_census(const uint8_t *body, int64_t length, const int64_t *most, int64_t *counts) {
    const uint8_t *at = body, *const end = body + length;
    int64_t containers = 0, commas = 0;
    bool within = true;
    while (at < end && within) {
        switch (*at++) {
        case '"':
            while (at < end && *at != '"') at += *at == '\\' ? 2 : 1;
            at++;
            break;
        case '{':
            containers++; /* and once more, below */
            /* fall through */
        case '[':
            within = ++containers <= most[0];
            break;
        case ',':
            within = ++commas <= most[1];
            break;
        default:
            break;
        }
    }
    counts[0] = containers;
    counts[1] = commas;
    return within;
}
