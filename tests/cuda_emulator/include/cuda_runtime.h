// Stands in for CUDA's header of this name: what the kernels of this project use of it, on the CPU.
#pragma once

#include "emulated/keywords.h"
// These come first: below, some of their names become macros.
#include "emulated/atomics.h"
#include "emulated/device_math.h"
#include "emulated/memory.h"
#include "emulated/runtime_api.h"
#include "emulated/vector_types.h"
#include "emulated/warp.h"
// Index of the thread and its like, and the fast functions that glibc declares too
#include "emulated/macros.h"
