#include "spectra.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <new>
#include <vector>

#include "dispatch.h"
#include "threads.h"

namespace spectral_fast {

namespace {

// Rows that a thread takes at a time have about this many values: some 20 us of work.
constexpr int64_t piece_values = 1024;

std::size_t round_up(std::size_t n, std::size_t unit) { return (n + unit - 1) / unit * unit; }

template <typename Before>
void sort(double* x, int64_t n, Before before) {
  bool in_order = true, reversed = true;
  for (int64_t i = 1; i < n; ++i) {
    in_order &= !before(x[i], x[i - 1]);
    reversed &= !before(x[i - 1], x[i]);
  }
  if (in_order) return;
  if (reversed)
    std::reverse(x, x + n);
  else
    std::sort(x, x + n, before);
}

}  // namespace

Block allocate(std::size_t bytes) {
  void* p = std::aligned_alloc(workspace_alignment, round_up(std::max<std::size_t>(bytes, 1), workspace_alignment));
  if (!p) throw std::bad_alloc();
  return Block(static_cast<char*>(p));
}

SpectrumWorkspace::SpectrumWorkspace(const KernelTable& table, int64_t n)
    : n_(n),
      scratch_bytes_(table.stats_workspace_bytes(n)),
      ordered_(allocate(round_up(n, padded_values) * sizeof(double))),
      scratch_(allocate(scratch_bytes_)) {}

void* SpectrumWorkspace::scratch() {
#ifdef SF_POISON  // tests/test_build.py: NaN wherever a kernel has not written
  std::memset(scratch_.get(), 0xff, scratch_bytes_);
#endif
  return scratch_.get();
}

template <typename Scalar>
const double* SpectrumWorkspace::ordered(const Scalar* values, Order order) {
  double* const x = reinterpret_cast<double*>(ordered_.get());
  bool finite = true;
  for (int64_t i = 0; i < n_; ++i) {
    x[i] = values[i] + 0.0;  // -0 becomes 0
    finite &= std::abs(x[i]) <= std::numeric_limits<double>::max();
  }
  if (!finite)
    x[0] = std::numeric_limits<double>::quiet_NaN();
  else if (order == Order::descending)
    sort(x, n_, std::greater<double>());
  else
    sort(x, n_, std::less<double>());
  std::fill(x + n_, x + round_up(n_, padded_values), 0.0);
  return x;
}

template const double* SpectrumWorkspace::ordered<float>(const float*, Order);
template const double* SpectrumWorkspace::ordered<double>(const double*, Order);

bool for_each_spectrum(const SpectraView& spectra, Order order, int threads, bool (*interrupted)(),
                       const SpectrumKernel& kernel) {
  const int64_t n = spectra.n, count = spectra.count;
  if (count == 0) return true;
  const int64_t rows = std::max<int64_t>(1, piece_values / n), pieces = (count + rows - 1) / rows;
  Crew crew(static_cast<int>(std::min<int64_t>(threads, pieces)), interrupted);
  const KernelTable& table = current_table();  // once: another thread may choose another meanwhile
  std::vector<SpectrumWorkspace> workspaces;
  for (int worker = 0; worker < crew.threads(); ++worker) workspaces.emplace_back(table, n);
  crew.run(pieces, [&](int64_t piece, int worker) {
    const Team team = crew.alone(worker);
    if (team.cancelled(team.pool)) return;
    SpectrumWorkspace& workspace = workspaces[worker];
    for (int64_t row = piece * rows; row < std::min(count, (piece + 1) * rows); ++row) {
      const double* const ordered = spectra.element == ElementType::float64
                                        ? workspace.ordered(static_cast<const double*>(spectra.values) + row * n, order)
                                        : workspace.ordered(static_cast<const float*>(spectra.values) + row * n, order);
      kernel(table, row, ordered, workspace.scratch());
    }
  });
  return !crew.cancelled();
}

}  // namespace spectral_fast
