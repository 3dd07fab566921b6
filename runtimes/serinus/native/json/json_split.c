/* Split the JSON of an inference request: its numbers into arrays, the rest into a small skeleton.
 *
 * Theory of operation. The body is walked once. Everything is copied to the skeleton as it is, but for two things:
 *   - `data` of an input, where it holds only numbers (or, for BOOL, booleans; null is NaN of a float) of the input's datatype: the values
 *     are written in that type to `values`, and the skeleton gets {"":[d0,d1,...]}, the dimensions of the nesting ([count] where it is flat);
 *     of a flat array of ASCII strings without escapes (BYTES), where each string lies in the body: two uint32, offset and length;
 *     other strings stay where they are;
 *   - the string value of the top-level "id", which varies from request to request: the skeleton gets "".
 * So requests of one client that differ in their numbers alone have one and the same skeleton, and the caller parses it once.
 *
 * The walk is strict where values are taken and lax elsewhere, which is safe: a taken value is a whole JSON value and is
 * replaced by a whole JSON value, so the body is valid JSON exactly when the skeleton is, and the caller has that checked by a
 * real parser before it trusts a skeleton for the first time.
 *
 * Whatever is unusual (escapes in keys, repeated keys, ragged nesting, a value out of the datatype's range, too many digits) makes the
 * call return -1: the caller then parses the whole body the ordinary way, which decides what is an error and words it.
 * Nothing is read past the body, nothing written past the capacities.
 */
#include "kernels.h"

#include <math.h>

#include "json_number.h"

#define MAX_RANK 32 /* NumPy 1's limit, and Limits.rank's default */

/* What the caller lends, and what it learns. Mirrored by serinus.protocol.json_kernel. */
typedef struct {
    uint8_t *skeleton;
    int64_t skeleton_capacity;
    uint8_t *values;
    int64_t values_capacity;
    int64_t id_offset; /* of the string's contents in the body */
    int64_t id_length; /* -1: the body has no "id" that was taken out */
    int64_t tensors;   /* how many `data` were taken out */
    int64_t values_used;
} split_area;

typedef enum {
    UNKNOWN,
    BOOL,
    UINT8,
    UINT16,
    UINT32,
    UINT64,
    INT8,
    INT16,
    INT32,
    INT64,
    FP32,
    FP64, /* FP16 and BF16 too: the caller rounds them */
    BYTES,
} datatype;

typedef struct {
    const uint8_t *body, *at, *end;
    uint8_t *out, *out_end;
    uint8_t *value, *value_end;
    split_area *area;
} walk;

static inline bool is_space(uint8_t byte) { return byte == ' ' || byte == '\n' || byte == '\r' || byte == '\t'; }

static inline const uint8_t *skip_space(const uint8_t *at, const uint8_t *end) {
    while (at < end && is_space(*at)) at++;
    return at;
}

static bool put(walk *w, const uint8_t *from, const uint8_t *to) {
    const size_t size = (size_t)(to - from);
    if (size > (size_t)(w->out_end - w->out)) return false;
    memcpy(w->out, from, size);
    w->out += size;
    return true;
}

static bool put_text(walk *w, const char *text, size_t size) { return put(w, (const uint8_t *)text, (const uint8_t *)text + size); }

/* The end of a string that starts at the quote `at`; NULL where it has none. `plain`: it has neither escapes nor control characters. */
static const uint8_t *string_end(const uint8_t *at, const uint8_t *end, bool *plain) {
    *plain = true;
    for (at++; at < end; at++) {
        if (*at == '"') return at + 1;
        if (*at == '\\') {
            *plain = false;
            at++;
        } else if (*at < 0x20) {
            *plain = false;
        }
    }
    return NULL;
}

/* The end of any value, found by its brackets and strings alone. */
static const uint8_t *value_end(const uint8_t *at, const uint8_t *end) {
    int64_t depth = 0;
    bool plain;
    while (at < end) {
        const uint8_t byte = *at;
        if (byte == '"') {
            at = string_end(at, end, &plain);
            if (at == NULL) return NULL;
        } else if (byte == '[' || byte == '{') {
            depth++;
            at++;
            continue;
        } else if (byte == ']' || byte == '}') {
            if (depth == 0) return NULL;
            depth--;
            at++;
        } else if (depth > 0) {
            at++;
            continue;
        } else {
            const uint8_t *start = at;
            while (at < end && *at != ',' && *at != ']' && *at != '}' && !is_space(*at)) at++;
            return at > start ? at : NULL;
        }
        if (depth == 0) return at;
    }
    return NULL;
}

static bool copy_space(walk *w) {
    const uint8_t *start = w->at;
    w->at = skip_space(start, w->end);
    return w->at == start || put(w, start, w->at);
}

static bool copy_byte(walk *w, uint8_t expected) {
    if (w->at == w->end || *w->at != expected || w->out == w->out_end) return false;
    *w->out++ = *w->at++;
    return true;
}

static bool copy_value(walk *w) {
    const uint8_t *stop = value_end(w->at, w->end);
    if (stop == NULL || !put(w, w->at, stop)) return false;
    w->at = stop;
    return true;
}

/* Copy `"key" :` and the space around, and say where the key lies. */
static bool copy_key(walk *w, const uint8_t **key, int64_t *size) {
    bool plain;
    if (w->at == w->end || *w->at != '"') return false;
    const uint8_t *stop = string_end(w->at, w->end, &plain);
    if (stop == NULL || !plain || !put(w, w->at, stop)) return false;
    *key = w->at + 1;
    *size = stop - w->at - 2;
    w->at = stop;
    return copy_space(w) && copy_byte(w, ':') && copy_space(w);
}

static inline bool is_key(const uint8_t *key, int64_t size, const char *name, int64_t length) {
    return size == length && memcmp(key, name, (size_t)length) == 0;
}

static datatype datatype_of(const uint8_t *name, int64_t size) {
    static const struct {
        char name[7];
        uint8_t size;
        uint8_t type;
    } known[] = {{"FP32", 4, FP32},     {"FP64", 4, FP64},     {"INT64", 5, INT64},   {"INT32", 5, INT32}, {"BOOL", 4, BOOL},
                 {"UINT8", 5, UINT8},   {"INT8", 4, INT8},     {"FP16", 4, FP64},     {"BF16", 4, FP64},   {"INT16", 5, INT16},
                 {"UINT16", 6, UINT16}, {"UINT32", 6, UINT32}, {"UINT64", 6, UINT64}, {"BYTES", 5, BYTES}};
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++)
        if (is_key(name, size, known[i].name, known[i].size)) return (datatype)known[i].type;
    return UNKNOWN;
}

static const uint8_t item_bytes[] = {0, 1, 1, 2, 4, 8, 1, 2, 4, 8, 4, 8, 0};

/* Read one value of an integer type into `to`. */
static inline const uint8_t *take_integer(const uint8_t *at, const uint8_t *end, datatype type, uint8_t *to) {
    bool negative;
    uint64_t magnitude;
    at = read_integer(at, end, &negative, &magnitude);
    if (at == NULL) return NULL;
    const int size = item_bytes[type];
    if (type <= UINT64) {
        if (negative && magnitude != 0) return NULL;
        if (size < 8 && magnitude >> (8 * size)) return NULL;
    } else {
        const uint64_t largest = ((uint64_t)1 << (8 * size - 1)) - (negative ? 0 : 1);
        if (magnitude > largest) return NULL;
        if (negative) magnitude = 0 - magnitude;
    }
    memcpy(to, &magnitude, (size_t)size); /* little-endian: the low bytes come first */
    return at;
}

static inline const uint8_t *take_bool(const uint8_t *at, const uint8_t *end, uint8_t *to) {
    if (end - at >= 4 && memcmp(at, "true", 4) == 0) {
        *to = 1;
        return at + 4;
    }
    if (end - at >= 5 && memcmp(at, "false", 5) == 0) {
        *to = 0;
        return at + 5;
    }
    if (at < end && (*at == '0' || *at == '1') && !(end - at >= 2 && (is_digit(at[1]) || at[1] == '.' || at[1] == 'e' || at[1] == 'E'))) {
        *to = *at == '1';
        return at + 1;
    }
    return NULL;
}

/* Read null, which stands for NaN among floats; tried only where there is no number. */
static const uint8_t *take_null(const uint8_t *at, const uint8_t *end, double *value) {
    if (end - at < 4 || memcmp(at, "null", 4) != 0) return NULL;
    *value = NAN;
    return at + 4;
}

static inline const uint8_t *take_value(const uint8_t *at, const uint8_t *end, datatype type, uint8_t *to) {
    double wide;
    if (type == FP32 || type == FP64) {
        const uint8_t *const start = at;
        at = read_double(at, end, &wide);
        if (at == NULL && (at = take_null(start, end, &wide)) == NULL) return NULL;
        if (type == FP64) {
            memcpy(to, &wide, 8);
            return at;
        }
        const float narrow = (float)wide;
        if (isinf(narrow)) return NULL;
        memcpy(to, &narrow, 4);
        return at;
    }
    return type == BOOL ? take_bool(at, end, to) : take_integer(at, end, type, to);
}

static bool put_dimensions(walk *w, const int64_t *dims, int rank) {
    if (!put_text(w, "{\"\":[", 5)) return false;
    for (int axis = 0; axis < rank; axis++) {
        char text[24];
        int start = sizeof text;
        int64_t size = dims[axis];
        do {
            text[--start] = (char)('0' + size % 10);
            size /= 10;
        } while (size);
        if (axis) text[--start] = ',';
        if (!put_text(w, text + start, sizeof text - (size_t)start)) return false;
    }
    return put_text(w, "]}", 2);
}

/* Take the array at `w->at`, and write its dimensions to the skeleton. */
static bool take_data(walk *w, datatype type) {
    const uint8_t *at = w->at, *const end = w->end;
    const int64_t item = item_bytes[type];
    int64_t count[MAX_RANK + 1], dims[MAX_RANK + 1];
    int depth = 0, rank = 0, leaf = 0;
    /* Each tensor starts at a multiple of 8; `value_end` is one, too. */
    uint8_t *to = w->area->values + ((w->value - w->area->values + 7) & ~(int64_t)7);
    if (type == UNKNOWN || at == end || *at != '[' || to > w->value_end) return false;
    bool expects_value = true; /* false: after a value, where only a comma or a bracket may come */
    bool may_close = false;
    for (;;) {
        at = skip_space(at, end);
        if (at == end) return false;
        if (expects_value && *at == '[') {
            if (depth == MAX_RANK || (leaf == depth && depth > 0)) return false;
            depth++;
            if (depth > rank) {
                rank = depth;
                dims[depth] = -1;
            }
            count[depth] = 0;
            may_close = true;
            at++;
            continue;
        }
        if (*at == ']' && (may_close || !expects_value)) {
            at++;
            if (dims[depth] < 0)
                dims[depth] = count[depth];
            else if (dims[depth] != count[depth])
                return false;
            if (--depth == 0) break;
            count[depth]++;
            expects_value = false;
            may_close = false;
            continue;
        }
        if (!expects_value) {
            if (*at != ',') return false;
            at++;
            expects_value = true;
            may_close = false;
            continue;
        }
        if (depth == 0) return false;
        /* A run of values on one level: the inner loop of all this. */
        if (leaf == 0) leaf = depth;
        if (leaf != depth || rank != depth) return false;
        int64_t run = 0;
        for (;;) {
            if (w->value_end - to < item) return false;
            at = take_value(at, end, type, to);
            if (at == NULL) return false;
            to += item;
            run++;
            at = skip_space(at, end);
            if (at == end || *at != ',') break;
            at = skip_space(at + 1, end);
            if (at == end) return false;
        }
        count[depth] += run;
        expects_value = false;
        may_close = false;
    }
    w->value = to;
    w->at = at;
    w->area->tensors++;
    return put_dimensions(w, dims + 1, rank);
}

/* Take the flat array of plain ASCII strings at `w->at`, or leave all as it is. */
static bool take_texts(walk *w) {
    const uint8_t *at = w->at, *const end = w->end;
    uint8_t *to = w->area->values + ((w->value - w->area->values + 7) & ~(int64_t)7);
    int64_t count = 0;
    if (at == end || *at != '[' || to > w->value_end) return false;
    at = skip_space(at + 1, end);
    if (at < end && *at != ']') {
        for (;;) {
            if (at == end || *at != '"' || w->value_end - to < 8) return false;
            const uint8_t *start = ++at;
            while (at < end && *at != '"' && *at != '\\' && *at >= 0x20 && *at < 0x80) at++;
            if (at == end || *at != '"') return false;
            const uint32_t span[2] = {(uint32_t)(start - w->body), (uint32_t)(at - start)};
            memcpy(to, span, 8);
            to += 8;
            count++;
            at = skip_space(at + 1, end);
            if (at == end || *at != ',') break;
            at = skip_space(at + 1, end);
        }
    }
    if (at == end || *at != ']') return false;
    uint8_t *const out = w->out;
    if (!put_dimensions(w, &count, 1)) {
        w->out = out;
        return false;
    }
    w->value = to;
    w->at = at + 1;
    w->area->tensors++;
    return true;
}

/* Find "datatype" among the members that follow `at`, which stands behind a value in an object. */
static datatype datatype_ahead(const uint8_t *at, const uint8_t *end) {
    for (;;) {
        bool plain;
        at = skip_space(at, end);
        if (at == end || *at != ',') return UNKNOWN;
        at = skip_space(at + 1, end);
        if (at == end || *at != '"') return UNKNOWN;
        const uint8_t *key = at + 1;
        at = string_end(at, end, &plain);
        if (at == NULL) return UNKNOWN;
        const int64_t size = at - key - 1;
        at = skip_space(at, end);
        if (at == end || *at != ':') return UNKNOWN;
        at = skip_space(at + 1, end);
        const uint8_t *stop = at < end ? value_end(at, end) : NULL;
        if (stop == NULL) return UNKNOWN;
        if (is_key(key, size, "datatype", 8)) return *at == '"' ? datatype_of(at + 1, stop - at - 2) : UNKNOWN;
        at = stop;
    }
}

/* Copy one object of "inputs", its numbers taken out. */
static bool split_input(walk *w) {
    datatype type = UNKNOWN;
    bool has_type = false, has_data = false;
    if (!copy_byte(w, '{') || !copy_space(w)) return false;
    for (;;) {
        const uint8_t *key;
        int64_t size;
        if (!copy_key(w, &key, &size) || w->at == w->end) return false;
        if (is_key(key, size, "data", 4)) {
            if (has_data) return false;
            has_data = true;
            if (!has_type) {
                const uint8_t *stop = value_end(w->at, w->end);
                if (stop == NULL) return false;
                type = datatype_ahead(stop, w->end);
            }
            if (type == BYTES ? *w->at != '[' || !(take_texts(w) || copy_value(w)) : !take_data(w, type)) return false;
        } else if (is_key(key, size, "datatype", 8)) {
            if (has_type) return false;
            has_type = true;
            const uint8_t *start = w->at;
            if (*start != '"' || !copy_value(w)) return false;
            type = datatype_of(start + 1, w->at - start - 2);
        } else if (!copy_value(w)) {
            return false;
        }
        if (!copy_space(w)) return false;
        if (w->at < w->end && *w->at == ',') {
            if (!copy_byte(w, ',') || !copy_space(w)) return false;
            continue;
        }
        return copy_byte(w, '}');
    }
}

static bool split_inputs(walk *w) {
    if (!copy_byte(w, '[') || !copy_space(w)) return false;
    for (;;) {
        if (!split_input(w) || !copy_space(w)) return false;
        if (w->at < w->end && *w->at == ',') {
            if (!copy_byte(w, ',') || !copy_space(w)) return false;
            continue;
        }
        return copy_byte(w, ']');
    }
}

static bool take_id(walk *w) {
    bool plain;
    const uint8_t *stop = string_end(w->at, w->end, &plain);
    if (stop == NULL || !plain || !put_text(w, "\"\"", 2)) return false;
    w->area->id_offset = w->at + 1 - w->body;
    w->area->id_length = stop - w->at - 2;
    w->at = stop;
    return true;
}

static bool split_request(walk *w) {
    bool has_id = false, has_inputs = false;
    if (!copy_space(w) || !copy_byte(w, '{') || !copy_space(w)) return false;
    for (;;) {
        const uint8_t *key;
        int64_t size;
        if (!copy_key(w, &key, &size) || w->at == w->end) return false;
        if (is_key(key, size, "inputs", 6)) {
            if (has_inputs || !split_inputs(w)) return false;
            has_inputs = true;
        } else if (is_key(key, size, "id", 2)) {
            if (has_id || !(*w->at == '"' ? take_id(w) : copy_value(w))) return false;
            has_id = true;
        } else if (!copy_value(w)) {
            return false;
        }
        if (!copy_space(w)) return false;
        if (w->at < w->end && *w->at == ',') {
            if (!copy_byte(w, ',') || !copy_space(w)) return false;
            continue;
        }
        return copy_byte(w, '}') && copy_space(w) && w->at == w->end && has_inputs;
    }
}

/* Returns the skeleton's length, or -1 where the caller must parse the body itself. `values` is aligned to 8. */
SERINUS_EXPORT int32_t serinus_json_take(const uint8_t *body, int32_t length, split_area *area) {
    walk w = {
        .body = body,
        .at = body,
        .end = body + length,
        .out = area->skeleton,
        .out_end = area->skeleton + area->skeleton_capacity,
        .value = area->values,
        .value_end = area->values + (area->values_capacity & ~(int64_t)7),
        .area = area,
    };
    area->id_offset = 0;
    area->id_length = -1;
    area->tensors = 0;
    if (length < 0 || !split_request(&w)) return -1;
    area->values_used = w.value - area->values;
    return (int32_t)(w.out - area->skeleton);
}
