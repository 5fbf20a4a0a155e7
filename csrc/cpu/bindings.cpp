// pybind11 module spectral_fast._cpu: addresses, shapes and strides in; the GIL is released while the kernels run.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "dispatch.h"

namespace py = pybind11;
using namespace spectral_fast;

namespace {

// Ctrl-C in a long call. Python runs its signal handlers in the main thread only: the others need not wait for the GIL.
bool interrupted() {
  if (syscall(SYS_gettid) != getpid()) return false;
  const py::gil_scoped_acquire locked;
  return PyErr_CheckSignals() != 0;
}

bool svdvals_clocked(std::uintptr_t data, int element, std::vector<int64_t> shape, std::vector<int64_t> strides,
                     std::uintptr_t values, std::uintptr_t info, int threads, StageClock* clock) {
  if (element < 0 || element > static_cast<int>(ElementType::bfloat16)) throw std::invalid_argument("unknown element type");
  if (shape.size() < 2 || shape.size() != strides.size())
    throw std::invalid_argument("shape and strides must name a batch of matrices");
  const BatchView batch{reinterpret_cast<const void*>(data), static_cast<ElementType>(element), std::move(shape),
                        std::move(strides)};
  int32_t* const info_out = reinterpret_cast<int32_t*>(info);
  Outcome outcome;
  {
    py::gil_scoped_release unlocked;
    outcome = batch.element == ElementType::float64
                  ? svdvals(batch, reinterpret_cast<double*>(values), info_out, threads, interrupted, clock)
                  : svdvals(batch, reinterpret_cast<float*>(values), info_out, threads, interrupted, clock);
  }
  if (outcome == Outcome::cancelled) throw py::error_already_set();
  return outcome == Outcome::all_ok;
}

bool svdvals_binding(std::uintptr_t data, int element, std::vector<int64_t> shape, std::vector<int64_t> strides,
                     std::uintptr_t values, std::uintptr_t info, int threads) {
  return svdvals_clocked(data, element, std::move(shape), std::move(strides), values, info, threads, nullptr);
}

const char* const stage_names[stage_count] = {"load", "reduce", "band", "bidiagonal", "values"};
const char* const work_names[] = {"bytes", "flops_float32", "flops_float64", "divisions"};

py::dict stages_binding(std::uintptr_t data, int element, int64_t rows, int64_t cols, int64_t row_stride, int64_t col_stride,
                        std::uintptr_t values, int threads) {
  int32_t info;
  StageClock clock{seconds_now, seconds_now(), {}};
  svdvals_clocked(data, element, {rows, cols}, {row_stride, col_stride}, values, reinterpret_cast<std::uintptr_t>(&info), threads,
                  &clock);
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
        py::arg("info"), py::arg("threads"),
        "Singular values of a batch of matrices at an address; strides count elements. Returns whether every info is 0.");
  m.def("stages", &stages, py::arg("rows"), py::arg("cols"), py::arg("batch"),
        "What matrices of a batch go through, in order; \"group\" is all stages, one matrix to a SIMD lane.");
  m.def("svdvals_stages", &stages_binding, py::arg("data"), py::arg("element"), py::arg("rows"), py::arg("cols"),
        py::arg("row_stride"), py::arg("col_stride"), py::arg("values"), py::arg("threads"),
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
