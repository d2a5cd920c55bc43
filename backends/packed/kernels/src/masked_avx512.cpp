// Products with a weight formed under its mask, for AVX-512.
#include "masked_unit.h"

const se::MaskedSteps se::kMaskedAvx512 = kSteps;
