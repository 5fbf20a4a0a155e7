// The singular vectors of a batch on their way to the kernel `vectors`.
#pragma once

#include <cstdint>

#include "dispatch.h"

namespace spectral_fast {

// For m x n matrices, m >= n, or n x m: u (m x n) and v (n x n), contiguous, a matrix after the other, and an info word each:
// info_ok, info_nonfinite or info_close; of the last two u and v hold nothing. Throws std::bad_alloc, and std::invalid_argument
// where there is no kernel for the shape. interrupted: as in svdvals() of dispatch.h; returns false once it answered true.
bool vectors(const BatchView& batch, float* u, float* v, int32_t* info, int threads, bool (*interrupted)());

}  // namespace spectral_fast
