// Batches of matrices on their way to the kernel gram_product.
#pragma once

#include <cstdint>

#include "dispatch.h"

namespace spectral_fast {

// Z = A^T (A X) and the energy of every matrix A (rows x cols, neither zero) of a batch. x and z: batch x cols x columns,
// contiguous; Scalar is float (float32, float16, bfloat16 matrices) or double; columns > 0.
// Throws std::bad_alloc. interrupted: as in svdvals() of dispatch.h; returns false once it answered true, and z and energy hold
// nothing.
template <typename Scalar>
bool gram_product(const BatchView& batch, const Scalar* x, int64_t columns, Scalar* z, double* energy, int threads,
                  bool (*interrupted)());

}  // namespace spectral_fast
