// Tracked looks at many matrices on their way to the kernels `look` and `gram_product`.
#pragma once

#include <cstdint>
#include <vector>

#include "dispatch.h"

namespace spectral_fast {

// What is known of all matrices before a look, contiguous, a matrix after the other.
template <typename Scalar>
struct LookBatch {
  LookInput<Scalar> in;
  const double* lines;  // slope and constant; null without probes
  // Products are repeated, most_products at most, where the first of the pending values is above `limit`, or one of the first
  // `watched` above 20 times that.
  double limit;
  int64_t watched, most_products;
};

template <typename Scalar>
struct LookOutput {
  double *squares, *pending;  // vectors each
  Scalar* vectors;            // n x vectors each; may not be the input's
  double* energy;
  double* bulk;  // the sum over the bulk, and the drift; null without probes
  int32_t* status;
};

// Matrices of one shape with shape.n columns, at least one of them, each by its strides. Throws std::bad_alloc. interrupted: as
// in svdvals() of dispatch.h; returns false once it answered true, and the output holds nothing. Of a matrix whose status is not
// `good` the squares and what is pending are NaN; of one that is `deficient` nothing else is there but the energy.
template <typename Scalar>
bool look(const std::vector<MatrixView>& matrices, const LookShape& shape, const LookBatch<Scalar>& batch,
          const LookOutput<Scalar>& out, int threads, bool (*interrupted)());

}  // namespace spectral_fast
