// Block Lanczos on many matrices on its way to the kernels `block_lanczos` and `gram_product`.
#pragma once

#include <cstdint>

#include "dispatch.h"

namespace spectral_fast {

// A matrix after the other. energy: sums of squares; all else `steps` blocks of vectors x vectors each, as in LanczosBlocks.
struct LanczosOutput {
  double *along, *first, *second, *energy;
};

// On A^T A for every matrix A of a batch, shape.n columns and at least one row each, all from the same start (n x vectors,
// contiguous, orthonormal but for rounding). Throws std::bad_alloc. interrupted: as in svdvals() of dispatch.h; returns false
// once it answered true, and the output holds nothing.
template <typename Scalar>
bool block_lanczos(const BatchView& batch, const LanczosShape& shape, const Scalar* start, const LanczosOutput& out, int threads,
                   bool (*interrupted)());

}  // namespace spectral_fast
