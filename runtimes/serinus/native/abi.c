#include "kernels.h"

SERINUS_EXPORT int32_t serinus_abi(void) { return SERINUS_ABI; }
