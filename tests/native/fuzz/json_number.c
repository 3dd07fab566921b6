/* libFuzzer target: a number that the kernel takes has the bits that the C library's correctly rounded strtod gives it, and an integer
 * the value that strtoull gives it. What it declines is nobody's business here. */
#include "json/json_number.h"

#include <errno.h>
#include <stdlib.h>

static void hold(int holds) {
    if (!holds) abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    uint8_t *bytes = malloc(size ? size : 1); /* ends where the number may */
    char *text = malloc(size + 1);            /* strtod wants a zero there */
    memcpy(bytes, data, size);
    double value = 0.0;
    const uint8_t *stop = read_double(bytes, bytes + size, &value);
    if (stop != NULL) {
        const size_t length = (size_t)(stop - bytes);
        hold(length > 0 && length <= size);
        memcpy(text, bytes, length);
        text[length] = 0;
        char *end;
        double expected = strtod(text, &end);
        hold(end == text + length);
        if (expected == 0.0 && strpbrk(text, ".eE") == NULL) expected = 0.0; /* -0: an integer, which has one zero */
        hold(memcmp(&value, &expected, sizeof value) == 0);
    }
    bool negative;
    uint64_t magnitude;
    stop = read_integer(bytes, bytes + size, &negative, &magnitude);
    if (stop != NULL) {
        const size_t length = (size_t)(stop - bytes);
        memcpy(text, bytes, length);
        text[length] = 0;
        char *end;
        errno = 0;
        const uint64_t expected = strtoull(text + negative, &end, 10);
        hold(errno == 0 && end == text + length && magnitude == expected && negative == (text[0] == '-'));
    }
    free(bytes), free(text);
    return 0;
}
