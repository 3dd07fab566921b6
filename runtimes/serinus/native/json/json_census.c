/* What a JSON text holds, counted before anybody parses it: a parsed array takes 30 times the three bytes of "[],". */
#include <stdbool.h>
#include <string.h>

#include "../kernels.h"

/* Bytes of CPython 3.11's objects, each with its place in the array or object that holds it; see json_census.py. */
enum { ARRAY = 80, OBJECT = 216, PLACE = 8, PAIR = 16, NUMBER = 32, STRING = 56 };

/* The parser keeps the keys that it has seen, and so does this, in places by their last and first bytes and length. */
#define KEYS 256
typedef struct {
    const uint8_t *text;
    int64_t length;
} seen_key;

static bool is_number(uint8_t byte) {
    return (byte >= '0' && byte <= '9') || byte == '-' || byte == '+' || byte == '.' || byte == 'e' || byte == 'E';
}

/* Counts containers (objects twice) and commas up to `most`, and what all values weigh; 0: there are more. */
SERINUS_EXPORT int32_t serinus_json_census(const uint8_t *body, int64_t length, const int64_t *most, int64_t *counts) {
    const uint8_t *at = body, *const end = body + length;
    int64_t containers = 0, commas = 0, weight = 0;
    seen_key keys[KEYS] = {{0}};
    seen_key last = {0}; /* the string before, which a colon makes a key */
    bool within = true;
    while (at < end && within) {
        const uint8_t *const start = at;
        switch (*at++) {
        case '"':
            while (at < end && *at != '"') at += *at == '\\' ? 2 : 1;
            last = (seen_key){start + 1, (at < end ? at : end) - start - 1};
            if (last.length) weight += STRING + last.length;
            at++;
            break;
        case ':':
            weight += PAIR;
            if (last.length) {
                seen_key *const known = &keys[(last.text[0] * 31u + last.text[last.length - 1] * 7u + (uint64_t)last.length) % KEYS];
                if (known->length == last.length && memcmp(known->text, last.text, (size_t)last.length) == 0)
                    weight -= STRING + last.length;
                else
                    *known = last;
                last.length = 0;
            }
            break;
        case '{':
            containers++; /* and once more, below */
            weight += OBJECT - ARRAY;
            /* fall through */
        case '[':
            within = ++containers <= most[0];
            weight += ARRAY;
            break;
        case ',':
            within = ++commas <= most[1];
            weight += PLACE;
            break;
        case '-':
        case '0': case '1': case '2': case '3': case '4': case '5': case '6': case '7': case '8': case '9':
            while (at < end && is_number(*at)) at++;
            if (at - start > 2) weight += NUMBER; /* those of one or two digits are there already */
            break;
        default:
            break;
        }
    }
    counts[0] = containers;
    counts[1] = commas;
    counts[2] = weight;
    return within;
}
