// Every path of the kernels, on uninitialised workspaces and outputs. tests/test_build.py runs this under valgrind, which
// complains where a branch depends on memory that nobody wrote; here every value that comes out decides one.
#include "csrc/cpu/dispatch.h"
#include "csrc/cpu/lanczos.h"
#include "csrc/cpu/look.h"
#include "csrc/cpu/products.h"
#include "csrc/cpu/vectors.h"

#include <array>
#include <cmath>
#include <cstdio>
#include <memory>
#include <random>
#include <utility>
#include <vector>

using namespace spectral_fast;

template <typename Scalar>
static bool descending(ElementType element, int64_t rows, int64_t cols, Driver driver = Driver::bidiag) {
  std::minstd_rand random(1);
  std::uniform_real_distribution<Scalar> uniform(-1, 1);
  const int64_t count = 2, k = std::min(rows, cols);
  const std::unique_ptr<Scalar[]> a(new Scalar[count * rows * cols]), values(new Scalar[count * k]);
  for (int64_t i = 0; i < count * rows * cols; ++i) a[i] = uniform(random);
  int32_t info[count];
  const BatchView batch{a.get(), element, {count, rows, cols}, {rows * cols, cols, 1}};
  if (svdvals(batch, values.get(), info, 1, nullptr, driver) != Outcome::all_ok) return false;
  bool good = true;
  for (int64_t i = 0; i < count * k; ++i) good = good && std::isfinite(values[i]) && (i % k == 0 || values[i] <= values[i - 1]);
  return good;
}

// A^T (A X) and the sum of squares, in place or copied, for ones: m times n, and m n.
template <typename Scalar>
static bool multiplied(ElementType element, int64_t rows, int64_t cols, int64_t columns, bool by_rows) {
  const std::unique_ptr<Scalar[]> a(new Scalar[rows * cols]), x(new Scalar[cols * columns]), z(new Scalar[cols * columns]);
  std::fill(a.get(), a.get() + rows * cols, Scalar(1));
  std::fill(x.get(), x.get() + cols * columns, Scalar(1));
  double energy = 0;
  const BatchView batch{a.get(), element, {rows, cols}, by_rows ? std::vector<int64_t>{cols, 1} : std::vector<int64_t>{1, rows}};
  bool good = gram_product(batch, x.get(), columns, z.get(), &energy, 1, nullptr);
  for (int64_t i = 0; i < cols * columns; ++i) good = good && z[i] == Scalar(rows * cols);
  return good && energy == double(rows * cols);
}

// Looks at matrices that are a multiple of one with s equal values, from exactly their vectors and from turned ones.
template <typename Scalar>
static bool looked(ElementType element, int64_t n, int64_t s, int64_t probes, int64_t for_drift) {
  const int64_t rows = n + 7, count = 2;
  const auto numbers = [](int64_t size) { return std::unique_ptr<Scalar[]>(new Scalar[size]); };
  const auto a = numbers(rows * n), v = numbers(count * n * s), fresh = numbers(count * n), omega = numbers(count * n * probes),
             images = numbers(count * n * for_drift), next = numbers(count * n * s);
  std::minstd_rand random(3);
  std::normal_distribution<Scalar> normal;
  for (int64_t i = 0; i < rows * n; ++i) a[i] = i / n == i % n ? Scalar(3) : 0;
  for (int64_t i = 0; i < count * n * s; ++i) v[i] = i / s % n == i % s;
  for (int64_t i = 0; i < count * n; ++i) fresh[i] = normal(random);
  for (int64_t i = 0; i < count * n * probes; ++i) omega[i] = normal(random);
  for (int64_t i = 0; i < count * n * for_drift; ++i) images[i] = normal(random);
  const std::unique_ptr<double[]> squares(new double[count * s]), pending(new double[count * s]), energy(new double[count]),
      bulk(new double[count * 2]);
  const double lines[] = {0.5, 0.25, 0.5, 0.25};
  int32_t status[count];
  const MatrixView view{a.get(), element, rows, n, n, 1};
  const LookShape shape{n, s, probes, for_drift};
  const LookBatch<Scalar> batch{{v.get(), fresh.get(), omega.get(), images.get()}, lines, -1.0, s, 3};
  bool good = look(std::vector<MatrixView>(count, view), shape, batch,
                   LookOutput<Scalar>{squares.get(), pending.get(), next.get(), energy.get(), bulk.get(), status}, 1, nullptr);
  for (int64_t i = 0; i < count * s; ++i) good = good && std::abs(squares[i] - 9) < 1e-4 && pending[i] < 1e-4;
  for (int64_t i = 0; i < count * n * s; ++i) good = good && std::abs(next[i]) < 1.001;
  for (int64_t i = 0; i < count; ++i) good = good && status[i] == 0 && std::abs(energy[i] - 9 * n) < 1e-3 * n;
  for (int64_t i = 0; probes && i < count; ++i) good = good && bulk[2 * i] > 0 && bulk[2 * i + 1] > 0;
  return good;
}

// Steps on three times an identity, whose block is 9 and leaves nothing for the next, and on random numbers.
template <typename Scalar>
static bool walked(ElementType element, int64_t n, int64_t s) {
  const int64_t rows = n + 7, steps = 3, size = s * s;
  const std::unique_ptr<Scalar[]> a(new Scalar[2 * rows * n]), start(new Scalar[n * s]);
  std::minstd_rand random(4);
  std::normal_distribution<Scalar> normal;
  for (int64_t i = 0; i < rows * n; ++i) a[i] = i / n == i % n ? Scalar(3) : 0;
  for (int64_t i = rows * n; i < 2 * rows * n; ++i) a[i] = normal(random);
  for (int64_t i = 0; i < n * s; ++i) start[i] = i / s == i % s;
  const auto numbers = [](int64_t count) { return std::unique_ptr<double[]>(new double[count]); };
  const auto along = numbers(2 * steps * size), first = numbers(2 * steps * size), second = numbers(2 * steps * size),
             energy = numbers(2);
  bool good = block_lanczos({a.get(), element, {2, rows, n}, {rows * n, n, 1}}, {n, s, steps}, start.get(),
                            {along.get(), first.get(), second.get(), energy.get()}, 1, nullptr);
  for (int64_t i = 0; i < steps * size; ++i) {
    const bool diagonal = i < size && i / s == i % s;
    good = good && along[i] == (diagonal ? 9 : 0) && second[i] == 0 && std::isfinite(first[i]);
  }
  for (int64_t i = steps * size; i < 2 * steps * size; ++i)
    good = good && std::isfinite(along[i]) && std::isfinite(first[i]) && std::abs(second[i]) < 1.001;
  return good && energy[0] == 9 * n && energy[1] > 0;
}

// Unit columns of random matrices' vectors; of the second, an identity, there are none.
static bool turned(int64_t rows, int64_t cols) {
  const int64_t m = std::max(rows, cols), n = std::min(rows, cols);
  const std::unique_ptr<float[]> a(new float[2 * m * n]), u(new float[2 * m * n]), v(new float[2 * n * n]);
  std::minstd_rand random(5);
  std::normal_distribution<float> normal;
  for (int64_t i = 0; i < m * n; ++i) a[i] = normal(random);
  for (int64_t i = 0; i < m * n; ++i) a[m * n + i] = i / cols == i % cols;
  int32_t info[2];
  bool good = vectors({a.get(), ElementType::float32, {2, rows, cols}, {m * n, cols, 1}}, u.get(), v.get(), info, 1, nullptr);
  good = good && info[0] == info_ok && info[1] == info_close;
  for (int64_t j = 0; j < n; ++j) {
    double of_u = 0, of_v = 0;
    for (int64_t i = 0; i < m; ++i) of_u += u[i * n + j] * u[i * n + j];
    for (int64_t i = 0; i < n; ++i) of_v += v[i * n + j] * v[i * n + j];
    good = good && std::abs(of_u - 1) < 1e-5 && std::abs(of_v - 1) < 1e-5;
  }
  if (!good) std::fprintf(stderr, "vectors of %d x %d\n", static_cast<int>(rows), static_cast<int>(cols));
  return good;
}

// Every field of the statistics, in double, of n random singular values.
static bool plausible(int64_t n) {
  std::minstd_rand random(2);
  std::uniform_real_distribution<double> uniform(0, 1);
  const int64_t count = 3;
  const std::unique_ptr<double[]> values(new double[count * n]);
  for (int64_t i = 0; i < count * n; ++i) values[i] = uniform(random);
  bool good = true;
  const auto each = [&](Order order, const auto& kernel) {
    for_each_spectrum({values.get(), ElementType::float64, count, n}, order, 1, nullptr, kernel);
  };
  each(Order::descending, [&](const KernelTable& table, int64_t, const double* sigma, void* scratch) {
    SmoothStats smooth;
    FittedStats fitted;
    table.stats(sigma, n, {1.5, 0.1}, &smooth, &fitted, scratch);
    for (const double field : {smooth.frobenius_norm, smooth.nuclear_norm, smooth.stable_rank, smooth.effective_rank})
      good = good && field > 0;
    good = good && smooth.spectral_norm < 1 && smooth.participation_ratio >= 0.999 && smooth.condition_number >= 1 &&
           smooth.log_norm == smooth.log_norm && fitted.mp_edge > 0 && fitted.mp_spikes >= 0;
    if (n > 1) good = good && smooth.spectral_entropy > 0 && fitted.log_alpha_norm == fitted.log_alpha_norm;
    good = good && fitted.n_tail <= n && (fitted.n_tail == 0 || (fitted.alpha > 1 && fitted.alpha_stderr > 0 && fitted.xmin > 0));
    good = good && !(fitted.ks_distance > 1) && !(fitted.alpha_weighted > 0) && !(smooth.alpha_hill <= 1);
    good = good && (n < 2 || table.ranksize_slope(sigma, n, scratch) == smooth.alpha_ranksize);
  });
  each(Order::ascending, [&](const KernelTable& table, int64_t, const double* x, void* scratch) {
    for (const double xmin : {0.5, 0.0, std::nan("")}) {
      PowerLawFit fit;
      int64_t n_tail;
      table.fit_powerlaw(x, n, xmin, &fit, &n_tail, scratch);
      good =
          good && n_tail <= n && (n_tail == 0 || (fit.alpha > 1 && fit.alpha_stderr > 0 && fit.xmin > 0 && fit.ks_distance < 1));
    }
    for (const int64_t k : {0, 1, 2, 100}) good = good && !(table.hill_alpha(x, n, k, scratch) <= 1);
  });
  if (!good) std::fprintf(stderr, "statistics of %d values\n", static_cast<int>(n));
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
  good = good && descending<float>(ElementType::float32, 300, 140, Driver::gram);
  good = good && descending<double>(ElementType::float64, 129, 400, Driver::gram);
  good = turned(129, 129) && turned(150, 140) && turned(131, 170) && good;
  for (int64_t n = 1; n <= 40; ++n) good = plausible(n) && good;
  for (const int64_t columns : {1, 2, 5, 9, 40})
    for (const auto& shape : {std::pair<int64_t, int64_t>{1, 1}, {17, 50}, {200, 49}, {30, 1400}})
      for (const bool by_rows : {false, true}) {
        const auto [rows, cols] = shape;
        const bool here = multiplied<float>(ElementType::float32, rows, cols, columns, by_rows) &&
                          multiplied<double>(ElementType::float64, rows, cols, columns, by_rows);
        if (!here) std::fprintf(stderr, "products of %d x %d\n", static_cast<int>(rows), static_cast<int>(cols));
        good = good && here;
      }
  for (const auto& [s, probes, for_drift] : {std::array<int64_t, 3>{2, 0, 0}, {5, 3, 1}, {17, 16, 4}})
    for (const int64_t n : {20, 130}) {
      const bool here = looked<float>(ElementType::float32, n, s, probes, for_drift) &&
                        looked<double>(ElementType::float64, n, s, probes, for_drift);
      if (!here) std::fprintf(stderr, "looks at %d columns\n", static_cast<int>(n));
      good = good && here;
    }
  for (const int64_t s : {1, 5, 8, 17})
    for (const int64_t n : {20, 130}) {
      const bool here = walked<float>(ElementType::float32, n, s) && walked<double>(ElementType::float64, n, s);
      if (!here) std::fprintf(stderr, "block Lanczos of %d columns\n", static_cast<int>(n));
      good = good && here;
    }
  return plausible(333) && good ? 0 : 1;
}
