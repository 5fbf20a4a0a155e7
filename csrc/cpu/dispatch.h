// Which instruction set runs, and how a call is split over threads.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "../kernels.h"
#include "spectra.h"

namespace spectral_fast {

// A batch of equal matrices. The last two entries of shape and strides are the matrix, the others the batch.
struct BatchView {
  const void* data;
  ElementType element;
  std::vector<int64_t> shape, strides;  // strides in elements
};

// Matrix `index` of the batch, counted row-major.
MatrixView matrix_at(const BatchView& batch, int64_t index);

template <typename Scalar>
const Kernels<Scalar>& kernels(const KernelTable& table);
template <>
inline const Kernels<float>& kernels<float>(const KernelTable& table) {
  return table.float32;
}
template <>
inline const Kernels<double>& kernels<double>(const KernelTable& table) {
  return table.float64;
}

// The kernels in use.
const KernelTable& current_table();
// Instruction sets compiled into this module, slowest first.
std::vector<std::string> built_isas();
// Those of them that this CPU runs.
std::vector<std::string> runnable_isas();
// The one in use: the last of runnable_isas() until use_isa() says otherwise.
std::string current_isa();
// Throws std::invalid_argument for a name that is not in runnable_isas().
void use_isa(const std::string& name);

// What matrices of a batch go through, in order. "group" is all stages, one matrix to a SIMD lane; "norm" is what
// is left of them for a single column.
std::vector<std::string> stages(int64_t rows, int64_t cols, int64_t batch);
// The same for driver "gram"; none where it has no kernel.
std::vector<std::string> gram_stages(int64_t rows, int64_t cols);

enum class Outcome { all_ok, some_failed, cancelled };

enum class Driver { bidiag, gram };

// Scalar is float (float32, float16, bfloat16 input) or double. Throws std::bad_alloc, and
// std::invalid_argument where the driver has no kernel for the shape.
// interrupted, where not null, is asked about every 50 ms on the calling thread; once it answers true the call returns early with
// Outcome::cancelled, and values and info hold nothing. Otherwise the outcome says whether every info is info_ok.
// target, where not null, gets the statistics of each matrix as soon as its values are there; of no values (n = 0) nothing.
// clock, where not null, has the stages' times of a single matrix added, unless it is so small that it goes in a group.
template <typename Scalar>
Outcome svdvals(const BatchView& batch, Scalar* values, int32_t* info, int threads, bool (*interrupted)(),
                Driver driver = Driver::bidiag, const StatsTarget* target = nullptr, StageClock* clock = nullptr);

// For a StageClock.
double seconds_now();

// What `threads` threads can do of `unit` (not bytes) in a second, out of registers, in the instruction set in use.
double peak(Work unit, int threads);

}  // namespace spectral_fast
