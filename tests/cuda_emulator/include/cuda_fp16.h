// Stands in for CUDA's header of this name.
#pragma once

#include "emulated/half_types.h"
