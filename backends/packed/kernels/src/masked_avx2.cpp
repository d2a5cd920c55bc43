// Products with a weight formed under its mask, for AVX2 and FMA.
#include "masked_unit.h"

const se::MaskedSteps se::kMaskedAvx2 = kSteps;
