// Products with a weight formed under its mask, for any machine.
#include "masked_unit.h"

const se::MaskedSteps se::kMaskedPortable = kSteps;
