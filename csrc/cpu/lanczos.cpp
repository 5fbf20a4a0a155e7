#include "lanczos.h"

#include <algorithm>
#include <vector>

#include "products.h"
#include "rounds.h"

namespace spectral_fast {

namespace {

template <typename Scalar>
class Walks {
 public:
  Walks(const std::vector<MatrixView>& matrices, const LanczosShape& shape, const Scalar* start, const LanczosOutput& out)
      : kernel_(kernels<Scalar>(current_table())),  // once: another thread may choose another meanwhile
        shape_(shape),
        start_(start),
        out_(out),
        sizes_(kernel_.lanczos_sizes(shape)),
        products_(kernel_, matrices.data(), matrices.size(), shape.vectors) {}

  int64_t pieces() const { return std::max(sizes_.pieces, products_.pieces()); }

  // For a matrix in work.
  struct Space {
    Block workspace;
    typename GramProducts<Scalar>::Space product;
  };
  Space space() const { return {poisoned(sizes_.workspace_bytes), products_.space()}; }

  // For a thread.
  struct Scratch {
    Block product, own;
  };
  Scratch scratch() const { return {products_.scratch(), poisoned(sizes_.scratch_bytes)}; }

  // run(count, f) calls f(index, worker) for all indices; false from it: the call was cancelled.
  template <typename Run>
  void operator()(int64_t index, Space& space, const std::vector<Scratch>& scratch, const Run& run) const {
    void* const workspace = space.workspace.get();
    const LanczosArrays<Scalar> arrays = kernel_.lanczos_arrays(shape_, workspace);
    const auto rows = [&](LanczosPhase phase, int64_t step) {
      return run(sizes_.pieces, [&](int64_t piece, int worker) {
        kernel_.lanczos_piece(shape_, start_, phase, step, piece, workspace, scratch[worker].own.get());
      });
    };
    const auto of_worker = [&](int worker) { return scratch[worker].product.get(); };
    if (!rows(LanczosPhase::start, 0)) return;
    for (int64_t step = 0; step < shape_.steps; ++step) {
      if (!products_.multiply(index, arrays.x, space.product, of_worker, run, arrays.z)) return;
      if (step == 0) out_.energy[index] = GramProducts<Scalar>::energy(space.product);
      const int64_t at = (index * shape_.steps + step) * shape_.vectors * shape_.vectors;
      const LanczosBlocks blocks{out_.along + at, out_.first + at, out_.second + at};
      for (const LanczosPhase phase :
           {LanczosPhase::recent, LanczosPhase::normalize, LanczosPhase::project, LanczosPhase::renormalize}) {
        if (!rows(phase, step)) return;
        kernel_.lanczos_small(shape_, phase, step, workspace, blocks);
      }
      if (step + 1 < shape_.steps && !rows(LanczosPhase::advance, step)) return;
    }
  }

 private:
  const Kernels<Scalar>& kernel_;
  const LanczosShape& shape_;
  const Scalar* const start_;
  const LanczosOutput& out_;
  const LanczosSizes sizes_;
  const GramProducts<Scalar> products_;
};

}  // namespace

template <typename Scalar>
bool block_lanczos(const BatchView& batch, const LanczosShape& shape, const Scalar* start, const LanczosOutput& out, int threads,
                   bool (*interrupted)()) {
  std::vector<MatrixView> matrices;
  for (int64_t index = 0; index < batch.shape[0]; ++index) matrices.push_back(matrix_at(batch, index));
  const Walks<Scalar> walks(matrices, shape, start, out);
  const double flops = 4.0 * matrices[0].rows * shape.n * std::max<int64_t>(shape.vectors, 8) * matrices.size();
  return run_rounds(walks, matrices.size(), threads_worth(flops), threads, interrupted);
}

template bool block_lanczos<float>(const BatchView&, const LanczosShape&, const float*, const LanczosOutput&, int, bool (*)());
template bool block_lanczos<double>(const BatchView&, const LanczosShape&, const double*, const LanczosOutput&, int, bool (*)());

}  // namespace spectral_fast
