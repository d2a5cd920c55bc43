// The steps between linears, for any machine.
#define SE_STEPS
#include "steps.h"

const se::Steps se::kStepsPortable = {norm, rotate, gate, attend, best};
