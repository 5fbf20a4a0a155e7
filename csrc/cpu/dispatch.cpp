#include "dispatch.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <numeric>
#include <stdexcept>

#include "threads.h"

namespace spectral_fast {

extern const KernelTable kernels_baseline;
#ifdef SF_X86_ISAS
extern const KernelTable kernels_avx2;
extern const KernelTable kernels_avx512;
#endif

namespace {

#include "heuristics.inl"

struct Candidate {
  const KernelTable* table;
  bool runnable;
};

const std::vector<Candidate>& candidates() {
  static const std::vector<Candidate> all = [] {
    std::vector<Candidate> found{{&kernels_baseline, true}};
#ifdef SF_X86_ISAS
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
    found.push_back({&kernels_avx2, avx2});
    found.push_back({&kernels_avx512, avx512});
#endif
    return found;
  }();
  return all;
}

const KernelTable* fastest() {
  const KernelTable* table = nullptr;
  for (const Candidate& c : candidates())
    if (c.runnable) table = c.table;
  return table;
}

std::atomic<const KernelTable*>& current() {
  static std::atomic<const KernelTable*> table{fastest()};
  return table;
}

std::size_t element_bytes(ElementType element) {
  switch (element) {
    case ElementType::float64: return 8;
    case ElementType::float32: return 4;
    default: return 2;
  }
}

}  // namespace

const KernelTable& current_table() { return *current().load(); }

MatrixView matrix_at(const BatchView& batch, int64_t index) {
  const std::size_t batch_dims = batch.shape.size() - 2;
  int64_t offset = 0, rest = index;
  for (std::size_t d = batch_dims; d-- > 0;) {
    offset += rest % batch.shape[d] * batch.strides[d];
    rest /= batch.shape[d];
  }
  return MatrixView{static_cast<const char*>(batch.data) + offset * static_cast<int64_t>(element_bytes(batch.element)),
                    batch.element,
                    batch.shape[batch_dims],
                    batch.shape[batch_dims + 1],
                    batch.strides[batch_dims],
                    batch.strides[batch_dims + 1]};
}

std::vector<std::string> built_isas() {
  std::vector<std::string> names;
  for (const Candidate& c : candidates()) names.push_back(c.table->isa);
  return names;
}

std::vector<std::string> runnable_isas() {
  std::vector<std::string> names;
  for (const Candidate& c : candidates())
    if (c.runnable) names.push_back(c.table->isa);
  return names;
}

std::string current_isa() { return current().load()->isa; }

void use_isa(const std::string& name) {
  std::string choices;
  for (const Candidate& c : candidates()) {
    if (!c.runnable) continue;
    if (name == c.table->isa) {
      current().store(c.table);
      return;
    }
    choices += (choices.empty() ? "" : ", ") + std::string(c.table->isa);
  }
  throw std::invalid_argument("instruction set '" + name + "' is not available: this build on this CPU runs " + choices);
}

std::vector<std::string> stages(int64_t rows, int64_t cols, int64_t batch) {
  const int64_t m = std::max(rows, cols), n = std::min(rows, cols);
  if (grouped(m, n, batch)) return {"group"};
  if (n == 1) return {"norm"};
  std::vector<std::string> names;
  if (reduce_first(m, n)) names.push_back("reduce");
  if (!directly(n)) names.push_back("band");
  names.insert(names.end(), {"bidiagonal", "values"});
  return names;
}

std::vector<std::string> gram_stages(int64_t rows, int64_t cols) {
  if (!by_gram(std::max(rows, cols), std::min(rows, cols))) return {};
  return {"reduce", "band", "bidiagonal", "values"};
}

// Long enough for threads that wake up one after the other to overlap, short enough to find a quiet moment.
constexpr double peak_seconds = 0.5e-3;
constexpr int peak_runs = 20;

template <typename Scalar>
Outcome svdvals(const BatchView& batch, Scalar* values, int32_t* info, int threads, bool (*interrupted)(), Driver driver,
                const StatsTarget* target, StageClock* clock) {
  const std::size_t batch_dims = batch.shape.size() - 2;
  const int64_t rows = batch.shape[batch_dims], cols = batch.shape[batch_dims + 1];
  const int64_t k = std::min(rows, cols);
  const bool gram = driver == Driver::gram;
  if (gram && !by_gram(std::max(rows, cols), k))
    throw std::invalid_argument("driver gram has no kernel for " + std::to_string(rows) + " x " + std::to_string(cols) +
                                " matrices: more than " + std::to_string(direct_size) +
                                " columns and more than 5/3 as many rows are needed, or the other way round");
  int64_t count = 1;
  for (std::size_t d = 0; d < batch_dims; ++d) count *= batch.shape[d];
  if (count == 0) return Outcome::all_ok;
  if (k == 0) {
    std::fill(info, info + count, info_ok);
    return Outcome::all_ok;
  }

  const KernelTable& table = current_table();  // once: another thread may choose another meanwhile
  const Kernels<Scalar>& kernel = kernels<Scalar>(table);
  // A unit is what one kernel call computes: a matrix, or a group of small ones.
  const int64_t group = gram ? 1 : kernel.group_size(rows, cols, count);
  const int64_t units = (count + group - 1) / group;
  const bool all_inside = shared(k);
  Crew crew(static_cast<int>(all_inside ? threads : std::min<int64_t>(threads, units)), interrupted);
  // Full rounds of one unit a thread; where the last round would leave half of the threads or more idle, its matrices have
  // all of them, one after the other.
  const int64_t last_round = units % crew.threads();
  const int64_t together = all_inside && 2 * last_round <= crew.threads() ? last_round : 0;
  const int64_t apart = units - together;

  // Worker w's workspace. The first serves what the threads do together, too.
  const auto workspace_bytes = gram        ? kernel.gram_workspace_bytes
                               : group > 1 ? kernel.group_workspace_bytes
                                           : kernel.workspace_bytes;
  const std::size_t bytes = workspace_bytes(rows, cols);
  std::vector<Block> workspaces;
  std::vector<SpectrumWorkspace> spectra;
  do {
    workspaces.push_back(allocate(bytes));
    if (target) spectra.emplace_back(table, k);
  } while (static_cast<int64_t>(workspaces.size()) < std::min<int64_t>(apart, crew.threads()));

  const auto compute_values = [&](int64_t first, int64_t members, void* workspace, const Team& team) {
#ifdef SF_POISON  // tests/test_build.py: NaN wherever a kernel has not written
    std::memset(workspace, 0xff, bytes);
    std::memset(values + first * k, 0xff, static_cast<std::size_t>(members * k) * sizeof(Scalar));
#endif
    if (group == 1)
      return (gram ? kernel.svdvals_gram : kernel.svdvals)(matrix_at(batch, first), values + first * k, info + first, workspace,
                                                           team, clock);
    MatrixView matrices[largest_group];
    for (int64_t i = 0; i < members; ++i) matrices[i] = matrix_at(batch, first + i);
    kernel.svdvals_group(matrices, members, values + first * k, info + first, workspace);
  };
  const auto compute = [&](int64_t unit, int worker, const Team& team) {
    const int64_t first = unit * group, members = std::min(group, count - first);
    compute_values(first, members, workspaces[worker].get(), team);
    for (int64_t i = first; target && i < first + members; ++i) {
      const double* const sigma = spectra[worker].ordered(values + i * k, Order::descending);
      table.stats(sigma, k, target->edge, target->smooth + i, target->fitted + i, spectra[worker].scratch());
    }
  };
  crew.run(apart, [&](int64_t unit, int worker) {
    const Team team = crew.alone(worker);
    if (!team.cancelled(team.pool)) compute(unit, worker, team);
  });
  for (int64_t unit = apart; unit < units && !crew.poll(); ++unit) compute(unit, 0, crew.together());

  if (crew.cancelled()) return Outcome::cancelled;
  return std::all_of(info, info + count, [](int32_t status) { return status == info_ok; }) ? Outcome::all_ok
                                                                                           : Outcome::some_failed;
}

template Outcome svdvals<float>(const BatchView&, float*, int32_t*, int, bool (*)(), Driver, const StatsTarget*, StageClock*);
template Outcome svdvals<double>(const BatchView&, double*, int32_t*, int, bool (*)(), Driver, const StatsTarget*, StageClock*);

double seconds_now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

double peak(Work unit, int threads) {
  const KernelTable& table = *current().load();
  Crew crew(threads, nullptr);
  int64_t rounds = 1 << 10;
  for (double seconds = 0; seconds < peak_seconds; rounds *= 2) {
    const double start = seconds_now();
    table.peak(unit, rounds);
    seconds = seconds_now() - start;
  }
  // All at once, since they may share a clock frequency or a core; each keeps its best, since other work may slow one down.
  std::vector<double> best(crew.threads());
  for (int run = 0; run < peak_runs; ++run) {
    crew.run(crew.threads(), [&](int64_t, int worker) {
      const double start = seconds_now();
      const double amount = table.peak(unit, rounds);
      best[worker] = std::max(best[worker], amount / (seconds_now() - start));
    });
  }
  return std::accumulate(best.begin(), best.end(), 0.0);
}

}  // namespace spectral_fast
