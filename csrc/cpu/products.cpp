#include "products.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "spectra.h"
#include "threads.h"

namespace spectral_fast {

namespace {

// Below this many flops a thread that has to be woken comes too late: some 50 us of work.
constexpr double flops_worth_a_thread = 5e6;

template <typename Scalar>
class GramProducts {
 public:
  GramProducts(const BatchView& batch, const Scalar* x, int64_t columns, Scalar* z, double* energy)
      : kernel_(kernels<Scalar>(current_table())),  // once: another thread may choose another meanwhile
        batch_(batch),
        x_(x),
        columns_(columns),
        z_(z),
        energy_(energy),
        cols_(batch.shape.back()),
        sizes_(kernel_.gram_product_sizes(matrix_at(batch, 0), columns)) {}

  int64_t pieces() const { return sizes_.pieces; }

  // A matrix's X and partials, and its pieces' energies.
  struct Matrix {
    Block vectors, partials;
    std::vector<double> energies;
  };
  Matrix matrix() const {
    return {poisoned(sizes_.vectors_bytes), poisoned(sizes_.vectors_bytes * sizes_.pieces), std::vector<double>(sizes_.pieces)};
  }
  Block scratch() const { return poisoned(sizes_.scratch_bytes); }

  void begin(int64_t index, Matrix& matrix) const {
    kernel_.gram_product_begin(matrix_at(batch_, index), columns_, x_ + index * cols_ * columns_, matrix.vectors.get());
  }
  void piece(int64_t index, int64_t piece, int64_t next, Matrix& matrix, void* scratch) const {
    matrix.energies[piece] =
        kernel_.gram_product_piece(matrix_at(batch_, index), columns_, piece, next, matrix.vectors.get(),
                                   matrix.partials.get() + piece * static_cast<int64_t>(sizes_.vectors_bytes), scratch);
  }
  // Rows of Z by `part` of `parts`, which changes no bit.
  void end(int64_t index, const Matrix& matrix, int64_t part, int64_t parts) const {
    kernel_.gram_product_end(matrix_at(batch_, index), columns_, matrix.partials.get(), cols_ * part / parts,
                             cols_ * (part + 1) / parts, z_ + index * cols_ * columns_);
    if (part > 0) return;
    energy_[index] = 0;
    for (const double energy : matrix.energies) energy_[index] += energy;
  }

 private:
  static Block poisoned(std::size_t bytes) {
    Block block = allocate(bytes);
#ifdef SF_POISON  // tests/test_build.py: NaN wherever a kernel has not written
    std::memset(block.get(), 0xff, bytes);
#endif
    return block;
  }

  const Kernels<Scalar>& kernel_;
  const BatchView& batch_;
  const Scalar* const x_;
  const int64_t columns_;
  Scalar* const z_;
  double* const energy_;
  const int64_t cols_;
  const GramProductSizes sizes_;
};

}  // namespace

template <typename Scalar>
bool gram_product(const BatchView& batch, const Scalar* x, int64_t columns, Scalar* z, double* energy, int threads,
                  bool (*interrupted)()) {
  const std::size_t dims = batch.shape.size();
  int64_t count = 1;
  for (std::size_t d = 0; d + 2 < dims; ++d) count *= batch.shape[d];
  if (count == 0) return true;

  const GramProducts<Scalar> products(batch, x, columns, z, energy);
  const int64_t pieces = products.pieces();
  const double flops = 4.0 * batch.shape[dims - 2] * batch.shape[dims - 1] * std::max<int64_t>(columns, 8) * count;
  const int64_t worth = static_cast<int64_t>(std::min(flops / flops_worth_a_thread, 1e6));
  Crew crew(static_cast<int>(std::max<int64_t>(1, std::min<int64_t>({threads, worth, count * pieces}))), interrupted);
  // As in svdvals(): full rounds of a matrix a thread, and all threads inside those of a last round that would leave half idle.
  const int64_t last_round = count % crew.threads();
  const int64_t together = crew.threads() > 1 && 2 * last_round <= crew.threads() ? last_round : 0;
  const int64_t apart = count - together;

  const int64_t apart_workers = std::min<int64_t>(apart, crew.threads());
  std::vector<typename GramProducts<Scalar>::Matrix> matrices;
  do matrices.push_back(products.matrix());
  while (static_cast<int64_t>(matrices.size()) < apart_workers);
  std::vector<Block> scratch;
  for (int worker = 0; worker < crew.threads(); ++worker) scratch.push_back(products.scratch());

  crew.run(apart, [&](int64_t index, int worker) {
    const Team team = crew.alone(worker);
    auto& matrix = matrices[worker];
    products.begin(index, matrix);
    for (int64_t piece = 0; piece < pieces; ++piece) {
      if (team.cancelled(team.pool)) return;
      products.piece(index, piece, piece + 1, matrix, scratch[worker].get());
    }
    products.end(index, matrix, 0, 1);
  });
  for (int64_t index = apart; index < count && !crew.poll(); ++index) {
    auto& matrix = matrices.front();
    products.begin(index, matrix);
    crew.run(pieces, [&](int64_t piece, int worker) {
      const Team team = crew.alone(worker);
      if (!team.cancelled(team.pool)) products.piece(index, piece, piece + 1, matrix, scratch[worker].get());
    });
    crew.run(crew.threads(), [&](int64_t part, int) { products.end(index, matrix, part, crew.threads()); });
  }
  return !crew.cancelled();
}

template bool gram_product<float>(const BatchView&, const float*, int64_t, float*, double*, int, bool (*)());
template bool gram_product<double>(const BatchView&, const double*, int64_t, double*, double*, int, bool (*)());

}  // namespace spectral_fast
