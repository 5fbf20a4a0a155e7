#include "products.h"

#include <algorithm>
#include <vector>

#include "rounds.h"

namespace spectral_fast {

namespace {

template <typename Scalar>
class Batch {
 public:
  Batch(const std::vector<MatrixView>& matrices, int64_t columns, const Scalar* x, Scalar* z, double* energy)
      : products_(kernels<Scalar>(current_table()), matrices.data(), matrices.size(), columns),
        size_(matrices[0].cols * columns),
        x_(x),
        z_(z),
        energy_(energy) {}

  typedef typename GramProducts<Scalar>::Space Space;
  int64_t pieces() const { return products_.pieces(); }
  Space space() const { return products_.space(); }
  Block scratch() const { return products_.scratch(); }

  template <typename Run>
  void operator()(int64_t index, Space& space, const std::vector<Block>& scratch, const Run& run) const {
    const auto of_worker = [&](int worker) { return scratch[worker].get(); };
    if (products_.multiply(index, x_ + index * size_, space, of_worker, run, z_ + index * size_))
      energy_[index] = GramProducts<Scalar>::energy(space);
  }

 private:
  const GramProducts<Scalar> products_;
  const int64_t size_;
  const Scalar* const x_;
  Scalar* const z_;
  double* const energy_;
};

}  // namespace

template <typename Scalar>
bool gram_product(const BatchView& batch, const Scalar* x, int64_t columns, Scalar* z, double* energy, int threads,
                  bool (*interrupted)()) {
  int64_t count = 1;
  for (std::size_t d = 0; d + 2 < batch.shape.size(); ++d) count *= batch.shape[d];
  if (count == 0) return true;

  std::vector<MatrixView> matrices;
  for (int64_t index = 0; index < count; ++index) matrices.push_back(matrix_at(batch, index));
  const double flops = 4.0 * matrices[0].rows * matrices[0].cols * std::max<int64_t>(columns, 8) * count;
  return run_rounds(Batch<Scalar>(matrices, columns, x, z, energy), count, threads_worth(flops), threads, interrupted);
}

template bool gram_product<float>(const BatchView&, const float*, int64_t, float*, double*, int, bool (*)());
template bool gram_product<double>(const BatchView&, const double*, int64_t, double*, double*, int, bool (*)());

}  // namespace spectral_fast
