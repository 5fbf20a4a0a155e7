// Which instruction set runs, and how a batch is split over threads.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "../kernels.h"

namespace spectral_fast {

// A batch of equal matrices. The last two entries of shape and strides are the matrix, the others the batch.
struct BatchView {
  const void* data;
  ElementType element;
  std::vector<int64_t> shape, strides;  // strides in elements
};

// Instruction sets compiled into this module, slowest first.
std::vector<std::string> built_isas();
// Those of them that this CPU runs.
std::vector<std::string> runnable_isas();
// The one in use: the last of runnable_isas() until use_isa() says otherwise.
std::string current_isa();
// Throws std::invalid_argument for a name that is not in runnable_isas().
void use_isa(const std::string& name);

// Scalar is float (float32, float16, bfloat16 input) or double. Returns whether every info is info_ok. Throws std::bad_alloc.
template <typename Scalar>
bool svdvals(const BatchView& batch, Scalar* values, int32_t* info, int threads);

}  // namespace spectral_fast
