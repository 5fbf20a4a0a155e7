#include "products.h"

#include <algorithm>
#include <vector>

#include "threads.h"

namespace spectral_fast {

template <typename Scalar>
bool gram_product(const BatchView& batch, const Scalar* x, int64_t columns, Scalar* z, double* energy, int threads,
                  bool (*interrupted)()) {
  const std::size_t dims = batch.shape.size();
  int64_t count = 1;
  for (std::size_t d = 0; d + 2 < dims; ++d) count *= batch.shape[d];
  if (count == 0) return true;

  std::vector<MatrixView> views;
  for (int64_t index = 0; index < count; ++index) views.push_back(matrix_at(batch, index));
  const Kernels<Scalar>& kernel = kernels<Scalar>(current_table());  // once: another thread may choose another meanwhile
  const GramProducts<Scalar> products(kernel, views.data(), count, columns);
  const int64_t pieces = products.pieces(), size = views[0].cols * columns;
  const int64_t worth = threads_worth(4.0 * views[0].rows * views[0].cols * std::max<int64_t>(columns, 8) * count);
  Crew crew(static_cast<int>(std::max<int64_t>(1, std::min<int64_t>({threads, worth, count * pieces}))), interrupted);
  // As in svdvals(): full rounds of a matrix a thread, and all threads inside those of a last round that would leave half idle.
  const int64_t last_round = count % crew.threads();
  const int64_t together = crew.threads() > 1 && 2 * last_round <= crew.threads() ? last_round : 0;
  const int64_t apart = count - together;

  const int64_t apart_workers = std::min<int64_t>(apart, crew.threads());
  std::vector<typename GramProducts<Scalar>::Space> spaces;
  do spaces.push_back(products.space());
  while (static_cast<int64_t>(spaces.size()) < apart_workers);
  std::vector<Block> scratch;
  for (int worker = 0; worker < crew.threads(); ++worker) scratch.push_back(products.scratch());

  crew.run(apart, [&](int64_t index, int worker) {
    const Team team = crew.alone(worker);
    auto& space = spaces[worker];
    products.begin(index, x + index * size, space);
    for (int64_t piece = 0; piece < pieces; ++piece) {
      if (team.cancelled(team.pool)) return;
      products.piece(index, piece, piece + 1, space, scratch[worker].get());
    }
    products.end(index, space, 0, 1, z + index * size);
    energy[index] = products.energy(space);
  });
  for (int64_t index = apart; index < count && !crew.poll(); ++index) {
    auto& space = spaces.front();
    products.begin(index, x + index * size, space);
    crew.run(pieces, [&](int64_t piece, int worker) {
      const Team team = crew.alone(worker);
      if (!team.cancelled(team.pool)) products.piece(index, piece, piece + 1, space, scratch[worker].get());
    });
    crew.run(crew.threads(), [&](int64_t part, int) { products.end(index, space, part, crew.threads(), z + index * size); });
    energy[index] = products.energy(space);
  }
  return !crew.cancelled();
}

template bool gram_product<float>(const BatchView&, const float*, int64_t, float*, double*, int, bool (*)());
template bool gram_product<double>(const BatchView&, const double*, int64_t, double*, double*, int, bool (*)());

}  // namespace spectral_fast
