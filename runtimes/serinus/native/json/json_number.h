/* Decimal text to the nearest double, ties to even.
 *
 * Up to 19 significant digits are exact in 64 bits. Small ones take Clinger's fast path (one exact multiplication or division);
 * the others Lemire's algorithm ("Number Parsing at a Gigabyte per Second", 2021): multiply by a 128-bit power of five, which
 * Mushtak and Lemire ("Fast number parsing without fallback", 2022) proved to be always enough for them. Of more digits the first 19 are
 * taken, and the result stands only where the next larger significand gives the same double; else the number is left
 * to the caller's own way (`false`).
 */
#ifndef SERINUS_JSON_NUMBER_H
#define SERINUS_JSON_NUMBER_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "json_powers.h"

static const double EXACT_TENS[] = {1e0,  1e1,  1e2,  1e3,  1e4,  1e5,  1e6,  1e7,  1e8,  1e9,  1e10, 1e11,
                                    1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22};

/* Bits of the double nearest to digits * 10^power; UINT64_MAX where it is infinite. digits is not 0. */
static inline uint64_t nearest_bits(uint64_t digits, int64_t power) {
    if (power < SMALLEST_POWER) return 0;
    if (power > LARGEST_POWER) return UINT64_MAX;
    const int zeros = __builtin_clzll(digits);
    digits <<= zeros;
    const uint64_t *five = FIVES[power - SMALLEST_POWER];
    const unsigned __int128 first = (unsigned __int128)digits * five[0];
    uint64_t high = (uint64_t)(first >> 64), low = (uint64_t)first;
    if ((high & 0x1FF) == 0x1FF) { /* the bits below the mantissa could still carry */
        const uint64_t second = (uint64_t)(((unsigned __int128)digits * five[1]) >> 64);
        low += second;
        if (second > low) high++;
    }
    const int upper = (int)(high >> 63);
    const int shift = upper + 9; /* leaves 54 bits: the mantissa and one to round by */
    uint64_t mantissa = high >> shift;
    int64_t exponent = ((217706 * power) >> 16) + 63 + upper - zeros + 1023; /* 217706 / 2^16: log2(10) */
    if (exponent <= 0) { /* subnormal */
        if (1 - exponent >= 64) return 0;
        mantissa >>= 1 - exponent;
        mantissa += mantissa & 1;
        return mantissa >> 1; /* a carry into bit 52 is the smallest normal number, as it must be */
    }
    /* Exactly halfway, possible for small powers only: to even. */
    if (low <= 1 && power >= -4 && power <= 23 && (mantissa & 3) == 1 && (mantissa << shift) == high) mantissa &= ~(uint64_t)1;
    mantissa += mantissa & 1;
    mantissa >>= 1;
    if (mantissa >= (uint64_t)1 << 53) {
        mantissa = (uint64_t)1 << 52;
        exponent++;
    }
    if (exponent >= 0x7FF) return UINT64_MAX;
    return (mantissa & (((uint64_t)1 << 52) - 1)) | ((uint64_t)exponent << 52);
}

static inline bool is_digit(uint8_t byte) { return (uint8_t)(byte - '0') < 10; }

/* Whether 8 bytes, read little-endian, are all digits, and their value. */
static inline bool eight_digits(uint64_t bytes) {
    return !(((bytes + 0x4646464646464646u) | (bytes - 0x3030303030303030u)) & 0x8080808080808080u);
}

static inline uint64_t value_of_eight(uint64_t bytes) {
    bytes -= 0x3030303030303030u;
    bytes = bytes * 10 + (bytes >> 8);
    return (((bytes & 0x000000FF000000FFu) * 0x000F424000000064u) + (((bytes >> 16) & 0x000000FF000000FFu) * 0x0000271000000001u)) >> 32;
}

/* From here on an exponent's further digits are left out. A body's length fits 31 bits, and so does the power that the digits bring:
 * no digits can bring a number with such an exponent back into the range of doubles, and it is 0 or infinite either way. */
static const int64_t MOST_EXPONENT = (int64_t)1 << 33;

/* Read a JSON number (RFC 8259, section 6) from `at`, never past `end`.
 * Returns the first byte after it, or NULL where it is malformed, infinite as a double, or too long to be told for sure. */
static inline const uint8_t *read_double(const uint8_t *at, const uint8_t *end, double *value) {
    const bool negative = at < end && *at == '-';
    if (negative) at++;
    if (at == end || !is_digit(*at)) return NULL;
    const uint8_t *start = at;
    uint64_t digits = 0;
    if (*at == '0') {
        at++;
        if (at < end && is_digit(*at)) return NULL;
    } else {
        while (at < end && is_digit(*at)) digits = digits * 10 + (uint64_t)(*at++ - '0');
    }
    int64_t count = at - start, power = 0;
    bool whole = true;
    const uint8_t *fraction = at;
    if (at < end && *at == '.') {
        whole = false;
        fraction = ++at;
        while (end - at >= 8) {
            uint64_t eight;
            memcpy(&eight, at, 8);
            if (!eight_digits(eight)) break;
            digits = digits * 100000000 + value_of_eight(eight);
            at += 8;
        }
        while (at < end && is_digit(*at)) digits = digits * 10 + (uint64_t)(*at++ - '0');
        if (at == fraction) return NULL;
        power = -(at - fraction);
        count += at - fraction;
    }
    const uint8_t *last = at;
    int64_t exponent = 0;
    if (at < end && (*at == 'e' || *at == 'E')) {
        whole = false;
        at++;
        bool down = false;
        if (at < end && (*at == '+' || *at == '-')) down = *at++ == '-';
        if (at == end || !is_digit(*at)) return NULL;
        while (at < end && is_digit(*at)) {
            if (exponent < MOST_EXPONENT) exponent = exponent * 10 + (*at - '0');
            at++;
        }
        power += down ? -exponent : exponent;
    }
    bool exact = true;
    if (count > 19) { /* leading zeros do not count; if there still are more, `digits` has overflowed: take the first 19 again */
        const uint8_t *digit = start;
        while (digit < last && (*digit == '0' || *digit == '.')) {
            if (*digit == '0') count--;
            digit++;
        }
        if (count > 19) {
            exact = false;
            digits = 0;
            int taken = 0;
            int64_t dropped = 0;
            for (; digit < last; digit++) {
                if (*digit == '.') continue;
                if (taken < 19) {
                    digits = digits * 10 + (uint64_t)(*digit - '0');
                    taken++;
                } else {
                    dropped++;
                }
            }
            power += dropped;
        }
    }
    uint64_t bits;
    if (digits == 0) { /* -0 without fraction is an integer, and integers have one zero */
        *value = negative && !whole ? -0.0 : 0.0;
        return at;
    }
    if (exact && power >= -22 && power <= 22 && digits <= (uint64_t)1 << 53) {
        double result = (double)digits;
        result = power < 0 ? result / EXACT_TENS[-power] : result * EXACT_TENS[power];
        *value = negative ? -result : result;
        return at;
    }
    bits = nearest_bits(digits, power);
    if (bits == UINT64_MAX || (!exact && bits != nearest_bits(digits + 1, power))) return NULL;
    if (negative) bits |= (uint64_t)1 << 63;
    memcpy(value, &bits, 8);
    return at;
}

/* Read a JSON integer whose magnitude fits 64 bits; NULL for anything else, a fraction or exponent included. */
static inline const uint8_t *read_integer(const uint8_t *at, const uint8_t *end, bool *negative, uint64_t *magnitude) {
    *negative = at < end && *at == '-';
    if (*negative) at++;
    if (at == end || !is_digit(*at)) return NULL;
    uint64_t value = 0;
    if (*at == '0') {
        at++;
        if (at < end && is_digit(*at)) return NULL;
    } else {
        for (; at < end && is_digit(*at); at++) {
            const uint64_t digit = (uint64_t)(*at - '0');
            if (value > (UINT64_MAX - digit) / 10) return NULL;
            value = value * 10 + digit;
        }
    }
    if (at < end && (*at == '.' || *at == 'e' || *at == 'E')) return NULL;
    *magnitude = value;
    return at;
}

#endif
