/* Which vector instructions this processor and its operating system have. */
#ifndef SERINUS_PROCESSOR_H
#define SERINUS_PROCESSOR_H

#include <stdint.h>

#if defined(__x86_64__)
#include <cpuid.h>

/* 32-bit numbers that the widest usable registers hold: 16 (AVX-512F), 8 (AVX2), or 0.
 *
 * Asked of the processor itself (Intel SDM, volume 1, 14.3 and 15.2): __builtin_cpu_supports reads a table of the compiler's run-time
 * library, which a library linked by zig has but never fills. Asked once, since CPUID leaves a virtual machine (some 20 us). */
static inline uint32_t vector_lanes(void) {
    static int32_t known = -1; /* two threads may both ask; they find the same */
    int32_t lanes = __atomic_load_n(&known, __ATOMIC_RELAXED);
    if (lanes >= 0) return (uint32_t)lanes;
    uint32_t a, b, c, d;
    lanes = 0;
    if (__get_cpuid(1, &a, &b, &c, &d) && c >> 27 & 1) { /* OSXSAVE: XGETBV is there */
        uint32_t saved, upper;                           /* registers that the operating system keeps for each thread */
        __asm__("xgetbv" : "=a"(saved), "=d"(upper) : "c"(0));
        if (__get_cpuid_count(7, 0, &a, &b, &c, &d)) {
            if (b >> 16 & 1 && (saved & 0xe6) == 0xe6) lanes = 16;
            else if (b >> 5 & 1 && (saved & 0x06) == 0x06) lanes = 8;
        }
    }
    __atomic_store_n(&known, lanes, __ATOMIC_RELAXED);
    return (uint32_t)lanes;
}

#else

static inline uint32_t vector_lanes(void) { return 0; }

#endif

#endif
