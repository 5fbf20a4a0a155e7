// Batches of spectra: rows of values, in any order, on their way to a kernel that wants them in double and in order.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <functional>
#include <memory>

#include "../kernels.h"

namespace spectral_fast {

struct Free {
  void operator()(void* p) const { std::free(p); }
};
typedef std::unique_ptr<char, Free> Block;

// At least `bytes`, aligned for a kernel. Throws std::bad_alloc.
Block allocate(std::size_t bytes);

enum class Order { descending, ascending };

// One thread's space for spectra of n values, one after the other.
class SpectrumWorkspace {
 public:
  SpectrumWorkspace(const KernelTable& table, int64_t n);

  // The n values (float or double) as the kernels of KernelTable take a spectrum.
  template <typename Scalar>
  const double* ordered(const Scalar* values, Order order);
  // stats_workspace_bytes(n) long.
  void* scratch();

 private:
  int64_t n_;
  std::size_t scratch_bytes_;
  Block ordered_, scratch_;
};

typedef std::function<void(const KernelTable& table, int64_t row, const double* ordered, void* scratch)> SpectrumKernel;

// `count` contiguous rows of n values, float32 or float64.
struct SpectraView {
  const void* values;
  ElementType element;
  int64_t count, n;
};

// Calls kernel(the table in use, row, its ordered values, scratch) for every row, on up to `threads` threads. Throws
// std::bad_alloc. interrupted: as in svdvals() of dispatch.h; returns false once it answered true, and not every row was
// computed.
bool for_each_spectrum(const SpectraView& spectra, Order order, int threads, bool (*interrupted)(), const SpectrumKernel& kernel);

// Where the statistics of a batch go: one record a spectrum, next to each other.
struct StatsTarget {
  BulkEdge edge;
  SmoothStats* smooth;
  FittedStats* fitted;
};

}  // namespace spectral_fast
