/* Shared by the kernels of this folder. Plain C11, no Python headers; see __init__.py. */
#ifndef SERINUS_KERNELS_H
#define SERINUS_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define SERINUS_EXPORT __declspec(dllexport)
#else
#define SERINUS_EXPORT __attribute__((visibility("default")))
#endif

/* Raise together with ABI in kernel_library.py whenever an exported signature or a structure changes; a new symbol joins SYMBOLS there. */
#define SERINUS_ABI 6

#endif
