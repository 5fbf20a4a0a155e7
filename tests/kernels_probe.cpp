// Every path of the kernels, on uninitialised workspaces and outputs. tests/test_build.py runs this under valgrind, which
// complains where a branch depends on memory that nobody wrote; here every value that comes out decides one.
#include "csrc/cpu/dispatch.h"

#include <cmath>
#include <cstdio>
#include <memory>
#include <random>

using namespace spectral_fast;

template <typename Scalar>
static bool descending(ElementType element, int64_t rows, int64_t cols) {
  std::minstd_rand random(1);
  std::uniform_real_distribution<Scalar> uniform(-1, 1);
  const int64_t count = 2, k = std::min(rows, cols);
  const std::unique_ptr<Scalar[]> a(new Scalar[count * rows * cols]), values(new Scalar[count * k]);
  for (int64_t i = 0; i < count * rows * cols; ++i) a[i] = uniform(random);
  int32_t info[count];
  const BatchView batch{a.get(), element, {count, rows, cols}, {rows * cols, cols, 1}};
  if (svdvals(batch, values.get(), info, 1, nullptr) != Outcome::all_ok) return false;
  bool good = true;
  for (int64_t i = 0; i < count * k; ++i) good = good && std::isfinite(values[i]) && (i % k == 0 || values[i] <= values[i - 1]);
  return good;
}

int main() {
  const int64_t others[][2] = {{1, 90}, {90, 1}, {17, 33}, {140, 130}, {70, 300}, {1500, 20}, {300, 270}};
  bool good = true;
  const auto check = [&good](int64_t rows, int64_t cols) {
    const bool here = descending<float>(ElementType::float32, rows, cols) && descending<double>(ElementType::float64, rows, cols);
    if (!here) std::fprintf(stderr, "%d x %d\n", static_cast<int>(rows), static_cast<int>(cols));
    good = good && here;
  };
  for (int64_t rows = 1; rows <= 20; ++rows)
    for (int64_t cols = 1; cols <= 20; ++cols) check(rows, cols);
  for (const auto& shape : others) check(shape[0], shape[1]);
  return good ? 0 : 1;
}
