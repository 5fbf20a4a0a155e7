// pybind11 module spectral_fast._cpu: addresses, shapes and strides in; the GIL is released while the kernels run.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "dispatch.h"
#include "lanczos.h"
#include "look.h"
#include "products.h"
#include "vectors.h"

namespace py = pybind11;
using namespace spectral_fast;

namespace {

// Ctrl-C in a long call. Python runs its signal handlers in the main thread only: the others need not wait for the GIL.
bool interrupted() {
  if (syscall(SYS_gettid) != getpid()) return false;
  const py::gil_scoped_acquire locked;
  return PyErr_CheckSignals() != 0;
}

BatchView batch_view(std::uintptr_t data, int element, std::vector<int64_t> shape, std::vector<int64_t> strides) {
  if (element < 0 || element > static_cast<int>(ElementType::bfloat16)) throw std::invalid_argument("unknown element type");
  if (shape.size() < 2 || shape.size() != strides.size())
    throw std::invalid_argument("shape and strides must name a batch of matrices");
  return {reinterpret_cast<const void*>(data), static_cast<ElementType>(element), std::move(shape), std::move(strides)};
}

bool svdvals_with(std::uintptr_t data, int element, std::vector<int64_t> shape, std::vector<int64_t> strides,
                  std::uintptr_t values, std::uintptr_t info, int threads, bool gram, const StatsTarget* target,
                  StageClock* clock) {
  const BatchView batch = batch_view(data, element, std::move(shape), std::move(strides));
  int32_t* const info_out = reinterpret_cast<int32_t*>(info);
  const Driver driver = gram ? Driver::gram : Driver::bidiag;
  Outcome outcome;
  {
    py::gil_scoped_release unlocked;
    outcome = batch.element == ElementType::float64
                  ? svdvals(batch, reinterpret_cast<double*>(values), info_out, threads, interrupted, driver, target, clock)
                  : svdvals(batch, reinterpret_cast<float*>(values), info_out, threads, interrupted, driver, target, clock);
  }
  if (outcome == Outcome::cancelled) throw py::error_already_set();
  return outcome == Outcome::all_ok;
}

bool svdvals_binding(std::uintptr_t data, int element, std::vector<int64_t> shape, std::vector<int64_t> strides,
                     std::uintptr_t values, std::uintptr_t info, int threads, bool gram) {
  return svdvals_with(data, element, std::move(shape), std::move(strides), values, info, threads, gram, nullptr, nullptr);
}

StatsTarget stats_target(std::pair<double, double> edge, std::uintptr_t smooth, std::uintptr_t fitted) {
  return {{edge.first, edge.second}, reinterpret_cast<SmoothStats*>(smooth), reinterpret_cast<FittedStats*>(fitted)};
}

void spectral_stats_binding(std::uintptr_t data, int element, std::vector<int64_t> shape, std::vector<int64_t> strides,
                            std::uintptr_t values, std::uintptr_t info, std::pair<double, double> edge, std::uintptr_t smooth,
                            std::uintptr_t fitted, int threads, bool gram) {
  const StatsTarget target = stats_target(edge, smooth, fitted);
  svdvals_with(data, element, std::move(shape), std::move(strides), values, info, threads, gram, &target, nullptr);
}

void gram_product_binding(std::uintptr_t data, int element, std::vector<int64_t> shape, std::vector<int64_t> strides,
                          std::uintptr_t x, int64_t columns, std::uintptr_t z, std::uintptr_t energy, int threads) {
  const BatchView batch = batch_view(data, element, std::move(shape), std::move(strides));
  if (columns < 1 || std::min(batch.shape.end()[-2], batch.shape.back()) < 1)
    throw std::invalid_argument("gram_product needs rows, columns and vectors");
  double* const sums = reinterpret_cast<double*>(energy);
  const auto run = [&](auto scalar) {
    typedef decltype(scalar) Scalar;
    const py::gil_scoped_release unlocked;
    return gram_product(batch, reinterpret_cast<const Scalar*>(x), columns, reinterpret_cast<Scalar*>(z), sums, threads,
                        interrupted);
  };
  if (!(batch.element == ElementType::float64 ? run(double()) : run(float()))) throw py::error_already_set();
}

void lanczos_binding(std::uintptr_t data, int element, std::vector<int64_t> shape, std::vector<int64_t> strides,
                     std::uintptr_t start, int64_t vectors, int64_t steps, std::uintptr_t along, std::uintptr_t first,
                     std::uintptr_t second, std::uintptr_t energy, int threads) {
  const BatchView batch = batch_view(data, element, std::move(shape), std::move(strides));
  if (batch.shape.size() != 3 || *std::min_element(batch.shape.begin(), batch.shape.end()) < 1 || steps < 1 || vectors < 1 ||
      vectors > batch.shape[2])
    throw std::invalid_argument("block_lanczos needs a batch of matrices, steps, and 1 to cols vectors");
  const auto numbers = [](std::uintptr_t address) { return reinterpret_cast<double*>(address); };
  const LanczosShape walk{batch.shape[2], vectors, steps};
  const LanczosOutput out{numbers(along), numbers(first), numbers(second), numbers(energy)};
  const auto run = [&](auto scalar) {
    typedef decltype(scalar) Scalar;
    const py::gil_scoped_release unlocked;
    return block_lanczos(batch, walk, reinterpret_cast<const Scalar*>(start), out, threads, interrupted);
  };
  if (!(batch.element == ElementType::float64 ? run(double()) : run(float()))) throw py::error_already_set();
}

void vectors_binding(std::uintptr_t data, int element, std::vector<int64_t> shape, std::vector<int64_t> strides, std::uintptr_t u,
                     std::uintptr_t v, std::uintptr_t info, int threads) {
  const BatchView batch = batch_view(data, element, std::move(shape), std::move(strides));
  const py::gil_scoped_release unlocked;
  const bool done = vectors(batch, reinterpret_cast<float*>(u), reinterpret_cast<float*>(v), reinterpret_cast<int32_t*>(info),
                            threads, interrupted);
  if (!done) {
    const py::gil_scoped_acquire locked;
    throw py::error_already_set();
  }
}

// Of matrices m x n: (address, row stride, column stride) each.
typedef std::vector<std::tuple<std::uintptr_t, int64_t, int64_t>> Places;

void look_binding(const Places& places, int element, int64_t rows, int64_t cols, std::array<int64_t, 3> counts,
                  std::pair<std::uintptr_t, std::uintptr_t> of_vectors,
                  std::tuple<std::uintptr_t, std::uintptr_t, std::uintptr_t> of_probes,
                  std::tuple<double, int64_t, int64_t> repeat,
                  std::tuple<std::uintptr_t, std::uintptr_t, std::uintptr_t, std::uintptr_t, std::uintptr_t, std::uintptr_t> out,
                  int threads) {
  const auto [vectors, probes, drift_probes] = counts;
  if (element < 0 || element > static_cast<int>(ElementType::bfloat16)) throw std::invalid_argument("unknown element type");
  if (places.empty() || rows < 1 || cols < 1) throw std::invalid_argument("look needs matrices, rows and columns");
  if (vectors < 2 || vectors > cols || probes < 0 || drift_probes < 0 || (probes ? drift_probes >= probes : drift_probes))
    throw std::invalid_argument("look needs 2 to cols vectors, and more probes than those of them for the drift");
  std::vector<MatrixView> matrices;
  for (const auto& [data, row_stride, col_stride] : places)
    matrices.push_back(
        {reinterpret_cast<const void*>(data), static_cast<ElementType>(element), rows, cols, row_stride, col_stride});
  const LookShape shape{cols, counts[0], counts[1], counts[2]};
  const auto run = [&](auto scalar) {
    typedef decltype(scalar) Scalar;
    const auto at = [](std::uintptr_t address) { return reinterpret_cast<Scalar*>(address); };
    const auto numbers = [](std::uintptr_t address) { return reinterpret_cast<double*>(address); };
    const auto& [omega, reference, lines] = of_probes;
    const auto& [limit, watched, most_products] = repeat;
    const auto& [squares, pending, next, energy, bulk, status] = out;
    const LookBatch<Scalar> batch{{at(of_vectors.first), at(of_vectors.second), at(omega), at(reference)},
                                  numbers(lines),
                                  limit,
                                  std::min(watched, shape.vectors),
                                  most_products};
    const LookOutput<Scalar> result{numbers(squares), numbers(pending), at(next),
                                    numbers(energy),  numbers(bulk),    reinterpret_cast<int32_t*>(status)};
    const py::gil_scoped_release unlocked;
    return look(matrices, shape, batch, result, threads, interrupted);
  };
  if (!(matrices[0].element == ElementType::float64 ? run(double()) : run(float()))) throw py::error_already_set();
}

template <typename Kernel>
void each_spectrum(std::uintptr_t values, int element, int64_t count, int64_t n, Order order, int threads, Kernel kernel) {
  const SpectraView spectra{reinterpret_cast<const void*>(values), static_cast<ElementType>(element), count, n};
  if (spectra.element != ElementType::float32 && spectra.element != ElementType::float64)
    throw std::invalid_argument("spectra are float32 or float64");
  bool done;
  {
    py::gil_scoped_release unlocked;
    done = for_each_spectrum(spectra, order, threads, interrupted, kernel);
  }
  if (!done) throw py::error_already_set();
}

void stats_binding(std::uintptr_t values, int element, int64_t count, int64_t n, std::pair<double, double> edge,
                   std::uintptr_t smooth, std::uintptr_t fitted, int threads) {
  const StatsTarget target = stats_target(edge, smooth, fitted);
  each_spectrum(values, element, count, n, Order::descending, threads,
                [=](const KernelTable& table, int64_t row, const double* sigma, void* scratch) {
                  table.stats(sigma, n, target.edge, target.smooth + row, target.fitted + row, scratch);
                });
}

void ranksize_binding(std::uintptr_t values, int element, int64_t count, int64_t n, std::uintptr_t slopes, int threads) {
  double* const out = reinterpret_cast<double*>(slopes);
  each_spectrum(values, element, count, n, Order::descending, threads,
                [=](const KernelTable& table, int64_t row, const double* sigma, void* scratch) {
                  out[row] = table.ranksize_slope(sigma, n, scratch);
                });
}

void fit_powerlaw_binding(std::uintptr_t values, int element, int64_t count, int64_t n, std::uintptr_t xmin, std::uintptr_t fit,
                          std::uintptr_t n_tail, int threads) {
  const double* const thresholds = reinterpret_cast<const double*>(xmin);
  PowerLawFit* const fits = reinterpret_cast<PowerLawFit*>(fit);
  int64_t* const tails = reinterpret_cast<int64_t*>(n_tail);
  each_spectrum(values, element, count, n, Order::ascending, threads,
                [=](const KernelTable& table, int64_t row, const double* x, void* scratch) {
                  // A threshold that is NaN asks for no search: nothing is above it, as nothing is above an infinite one.
                  const double threshold = !thresholds ? NAN : std::isnan(thresholds[row]) ? INFINITY : thresholds[row];
                  table.fit_powerlaw(x, n, threshold, fits + row, tails + row, scratch);
                });
}

void hill_binding(std::uintptr_t values, int element, int64_t count, int64_t n, int64_t k, std::uintptr_t alphas, int threads) {
  double* const out = reinterpret_cast<double*>(alphas);
  each_spectrum(values, element, count, n, Order::ascending, threads,
                [=](const KernelTable& table, int64_t row, const double* x, void* scratch) {
                  out[row] = table.hill_alpha(x, n, k, scratch);
                });
}

const char* const stage_names[stage_count] = {"load", "reduce", "band", "bidiagonal", "values"};
const char* const work_names[] = {"bytes", "flops_float32", "flops_float64", "divisions"};

py::dict stages_binding(std::uintptr_t data, int element, int64_t rows, int64_t cols, int64_t row_stride, int64_t col_stride,
                        std::uintptr_t values, int threads, bool gram) {
  int32_t info;
  StageClock clock{seconds_now, seconds_now(), {}};
  svdvals_with(data, element, {rows, cols}, {row_stride, col_stride}, values, reinterpret_cast<std::uintptr_t>(&info), threads,
               gram, nullptr, &clock);
  py::dict found;
  for (int stage = 0; stage < stage_count; ++stage) {
    const StageTime& time = clock.stages[stage];
    if (time.seconds > 0)
      found[stage_names[stage]] = py::make_tuple(time.seconds, work_names[static_cast<int>(time.unit)], time.amount);
  }
  return found;
}

double peak_binding(const std::string& unit, int threads) {
  for (const Work work : {Work::flops_float32, Work::flops_float64, Work::divisions}) {
    if (unit != work_names[static_cast<int>(work)]) continue;
    const py::gil_scoped_release unlocked;
    return peak(work, threads);
  }
  throw std::invalid_argument("no peak is measured in '" + unit + "': flops_float32, flops_float64 or divisions");
}

}  // namespace

PYBIND11_MODULE(_cpu, m) {
  m.doc() = "CPU kernels of spectral_fast. The contract is csrc/kernels.h.";
  m.def("svdvals", &svdvals_binding, py::arg("data"), py::arg("element"), py::arg("shape"), py::arg("strides"), py::arg("values"),
        py::arg("info"), py::arg("threads"), py::arg("gram") = false,
        "Singular values of a batch of matrices at an address; strides count elements. Returns whether every info is 0.\n"
        "gram: by driver \"gram\", ValueError for a shape that it has no kernel for.");
  m.def("spectral_stats", &spectral_stats_binding, py::arg("data"), py::arg("element"), py::arg("shape"), py::arg("strides"),
        py::arg("values"), py::arg("info"), py::arg("edge"), py::arg("smooth"), py::arg("fitted"), py::arg("threads"),
        py::arg("gram") = false,
        "svdvals, and the statistics of each matrix next to each other. edge: (edge / median, slack) of the noise bulk, or NaN.");
  m.def("stats_from_svdvals", &stats_binding, py::arg("values"), py::arg("element"), py::arg("count"), py::arg("n"),
        py::arg("edge"), py::arg("smooth"), py::arg("fitted"), py::arg("threads"),
        "Statistics of `count` contiguous rows of n singular values, in any order.");
  m.def("fit_powerlaw", &fit_powerlaw_binding, py::arg("values"), py::arg("element"), py::arg("count"), py::arg("n"),
        py::arg("xmin"), py::arg("fit"), py::arg("n_tail"), py::arg("threads"),
        "Power laws of `count` contiguous rows of n values: alpha, its standard error, xmin and D next to each other, n_tail as\n"
        "int64. xmin: address of a threshold for each row, or 0 to search for it.");
  m.def("ranksize_slope", &ranksize_binding, py::arg("values"), py::arg("element"), py::arg("count"), py::arg("n"),
        py::arg("slopes"), py::arg("threads"), "Rank-size slopes of `count` contiguous rows of n singular values.");
  m.def("hill_alpha", &hill_binding, py::arg("values"), py::arg("element"), py::arg("count"), py::arg("n"), py::arg("k"),
        py::arg("alphas"), py::arg("threads"),
        "Hill exponents of `count` contiguous rows of n values, over the k largest of each; k = 0: over the upper half.");
  m.def("gram_product", &gram_product_binding, py::arg("data"), py::arg("element"), py::arg("shape"), py::arg("strides"),
        py::arg("x"), py::arg("columns"), py::arg("z"), py::arg("energy"), py::arg("threads"),
        "A^T (A X) and the sum of squares of A, for a batch of matrices and as many contiguous X of `columns` columns.");
  m.def(
      "vectors", &vectors_binding, py::arg("data"), py::arg("element"), py::arg("shape"), py::arg("strides"), py::arg("u"),
      py::arg("v"), py::arg("info"), py::arg("threads"),
      "Singular vectors of m x n or n x m matrices, m >= n: u (m x n) and v (n x n), and info (0 good, 1 not finite, 3 equal or\n"
      "vanishing values).");
  m.def("block_lanczos", &lanczos_binding, py::arg("data"), py::arg("element"), py::arg("shape"), py::arg("strides"),
        py::arg("start"), py::arg("vectors"), py::arg("steps"), py::arg("along"), py::arg("first"), py::arg("second"),
        py::arg("energy"), py::arg("threads"),
        "Block Lanczos on A^T A for a batch (b, m, n), all from one contiguous start (n, vectors): diagonal blocks, the two\n"
        "factors of those below (b, steps, vectors, vectors) and sums of squares of A.");
  m.def("look", &look_binding, py::arg("places"), py::arg("element"), py::arg("rows"), py::arg("cols"), py::arg("counts"),
        py::arg("of_vectors"), py::arg("of_probes"), py::arg("repeat"), py::arg("out"), py::arg("threads"),
        "Tracked looks at matrices of one shape, (address, row stride, column stride) each. counts: of vectors, of probes, of\n"
        "those for the drift. of_vectors: V, fresh. of_probes: the probes, the reference, the lines. repeat: limit, watched,\n"
        "most_products. out: squares, pending, vectors, energy, bulk, status (0 good, 1 not finite, 2 deficient). All\n"
        "contiguous, a matrix after the other; csrc/cpu/look.h.");
  m.def("stages", &stages, py::arg("rows"), py::arg("cols"), py::arg("batch"),
        "What matrices of a batch go through, in order; \"group\" is all stages, one matrix to a SIMD lane.");
  m.def("gram_stages", &gram_stages, py::arg("rows"), py::arg("cols"),
        "The same for driver \"gram\"; none where it has no kernel.");
  m.def("svdvals_stages", &stages_binding, py::arg("data"), py::arg("element"), py::arg("rows"), py::arg("cols"),
        py::arg("row_stride"), py::arg("col_stride"), py::arg("values"), py::arg("threads"), py::arg("gram") = false,
        "svdvals of one matrix: for each stage it went through, (seconds, unit, amount of work in that unit).");
  m.def("peak", &peak_binding, py::arg("unit"), py::arg("threads"),
        "What threads can do in a second out of registers; unit: flops_float32, flops_float64 or divisions.");
  m.def("built_isas", &built_isas, "Instruction sets compiled into this module, slowest first.");
  m.def("runnable_isas", &runnable_isas, "Instruction sets of built_isas() that this CPU runs.");
  m.def("current_isa", &current_isa, "The instruction set in use.");
  m.def("use_isa", &use_isa, py::arg("name"), "Choose the instruction set; ValueError if this CPU does not run it.");
  py::dict elements;
  elements["float32"] = static_cast<int>(ElementType::float32);
  elements["float64"] = static_cast<int>(ElementType::float64);
  elements["float16"] = static_cast<int>(ElementType::float16);
  elements["bfloat16"] = static_cast<int>(ElementType::bfloat16);
  m.attr("element_types") = elements;
  m.attr("info_nonfinite") = info_nonfinite;
}
