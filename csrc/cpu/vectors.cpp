#include "vectors.h"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

#include "products.h"
#include "threads.h"

namespace spectral_fast {

namespace {
#include "heuristics.inl"
}  // namespace

bool vectors(const BatchView& batch, float* u, float* v, int32_t* info, int threads, bool (*interrupted)()) {
  const int64_t rows = batch.shape.end()[-2], cols = batch.shape.back();
  const int64_t m = std::max(rows, cols), n = std::min(rows, cols);
  if (!vectors_exist(m, n) || batch.element == ElementType::float64)
    throw std::invalid_argument("vectors has no kernel for " + std::to_string(rows) + " x " + std::to_string(cols) +
                                " matrices of this type: both sides above " + std::to_string(direct_size) +
                                ", none above 5/3 of the other, and no float64");
  int64_t count = 1;
  for (std::size_t d = 0; d + 2 < batch.shape.size(); ++d) count *= batch.shape[d];
  const KernelTable& table = current_table();  // once: another thread may choose another meanwhile
  const std::size_t bytes = table.vectors_workspace_bytes(rows, cols);
  Crew crew(threads, interrupted);
  // One matrix a thread, and what is left over with all threads inside, as in svdvals().
  const int64_t together = count % crew.threads(), apart = count - together;
  std::vector<Block> workspaces;
  do workspaces.push_back(poisoned(bytes));
  while (static_cast<int64_t>(workspaces.size()) < std::min<int64_t>(apart, crew.threads()));
  const auto compute = [&](int64_t index, int worker, const Team& team) {
    info[index] = table.vectors(matrix_at(batch, index), u + index * m * n, v + index * n * n, workspaces[worker].get(), team);
  };
  crew.run(apart, [&](int64_t index, int worker) {
    const Team team = crew.alone(worker);
    if (!team.cancelled(team.pool)) compute(index, worker, team);
  });
  for (int64_t index = apart; index < count && !crew.poll(); ++index) compute(index, 0, crew.together());
  return !crew.cancelled();
}

}  // namespace spectral_fast
