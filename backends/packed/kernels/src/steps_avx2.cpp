// The steps between linears, for AVX2.
#define SE_STEPS
#include "steps.h"

const se::Steps se::kStepsAvx2 = {norm, rotate, gate, attend, best};
