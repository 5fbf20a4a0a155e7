#include "look.h"

#include <algorithm>
#include <cmath>

#include "products.h"
#include "rounds.h"

namespace spectral_fast {

namespace {

template <typename Scalar>
class Looks {
 public:
  Looks(const std::vector<MatrixView>& matrices, const LookShape& shape, const LookBatch<Scalar>& batch,
        const LookOutput<Scalar>& out)
      : kernel_(kernels<Scalar>(current_table())),  // once: another thread may choose another meanwhile
        shape_(shape),
        batch_(batch),
        out_(out),
        sizes_(kernel_.look_sizes(shape)),
        first_(kernel_, matrices.data(), matrices.size(), sizes_.width),
        again_(kernel_, matrices.data(), matrices.size(), sizes_.padded) {}

  int64_t pieces() const { return std::max(sizes_.pieces, first_.pieces()); }

  // For a matrix in work, and for each thread that multiplies.
  struct Space {
    Block workspace;
    typename GramProducts<Scalar>::Space first, again;
  };
  Space space() const { return {poisoned(sizes_.workspace_bytes), first_.space(), again_.space()}; }
  Block scratch() const { return first_.scratch(); }

  // run(count, f) calls f(index, worker) for all indices; false from it: the call was cancelled.
  template <typename Run>
  void operator()(int64_t index, Space& space, const std::vector<Block>& scratch, const Run& run) const {
    const int64_t n = shape_.n, s = shape_.vectors;
    void* const workspace = space.workspace.get();
    const LookArrays<Scalar> arrays = kernel_.look_arrays(shape_, workspace);
    LookInput<Scalar> in = batch_.in;
    in.vectors += index * n * s, in.fresh += index * n;
    LookResult result{};
    result.squares = out_.squares + index * s, result.pending = out_.pending + index * s;
    if (shape_.probes) {
      in.probes += index * n * shape_.probes, in.reference += index * n * shape_.drift_probes;
      result.slope = batch_.lines[2 * index], result.constant = batch_.lines[2 * index + 1];
    }
    Scalar* const vectors = out_.vectors + index * n * s;
    LookStatus status = LookStatus::good;
    const auto rows = [&](LookStep step) {
      return run(sizes_.pieces,
                 [&](int64_t piece, int) { kernel_.look_piece(shape_, in, step, status, piece, workspace, vectors); });
    };
    const auto small = [&](LookStep step) { return kernel_.look_small(shape_, step, workspace, &result); };
    const auto of_worker = [&](int worker) { return scratch[worker].get(); };
    if (!rows(LookStep::gather)) return;
    if (shape_.probes) {
      small(LookStep::gather);
      if (!rows(LookStep::project)) return;
    }
    if (!first_.multiply(index, arrays.x, space.first, of_worker, run, arrays.z)) return;
    result.energy = out_.energy[index] = GramProducts<Scalar>::energy(space.first);
    if (!rows(LookStep::inner)) return;
    status = small(LookStep::inner);
    if (!rows(LookStep::turn)) return;
    if (shape_.probes) {
      small(LookStep::turn);
      out_.bulk[2 * index] = result.squares_sum, out_.bulk[2 * index + 1] = result.drift;
    }
    for (int64_t product = 1; product < batch_.most_products && status == LookStatus::good && late(result.pending); ++product) {
      if (!again_.multiply(index, arrays.next, space.again, of_worker, run, arrays.z) || !rows(LookStep::inner_again)) return;
      status = small(LookStep::inner_again);
      if (!rows(LookStep::turn_again)) return;
    }
    small(LookStep::write);
    rows(LookStep::write);
    if (status != LookStatus::good)
      for (int64_t j = 0; j < s; ++j) result.squares[j] = result.pending[j] = NAN;
    out_.status[index] = static_cast<int32_t>(status);
  }

 private:
  bool late(const double* pending) const {
    bool found = pending[0] > batch_.limit;
    for (int64_t j = 0; j < batch_.watched; ++j) found = found || pending[j] > 20 * batch_.limit;
    return found;
  }

  const Kernels<Scalar>& kernel_;
  const LookShape& shape_;
  const LookBatch<Scalar>& batch_;
  const LookOutput<Scalar>& out_;
  const LookSizes sizes_;
  const GramProducts<Scalar> first_, again_;
};

}  // namespace

template <typename Scalar>
bool look(const std::vector<MatrixView>& matrices, const LookShape& shape, const LookBatch<Scalar>& batch,
          const LookOutput<Scalar>& out, int threads, bool (*interrupted)()) {
  const Looks<Scalar> looks(matrices, shape, batch, out);
  const double flops = 4.0 * matrices[0].rows * shape.n * (shape.vectors + shape.probes) * matrices.size();
  return run_rounds(looks, matrices.size(), threads_worth(flops), threads, interrupted);
}

template bool look<float>(const std::vector<MatrixView>&, const LookShape&, const LookBatch<float>&, const LookOutput<float>&,
                          int, bool (*)());
template bool look<double>(const std::vector<MatrixView>&, const LookShape&, const LookBatch<double>&, const LookOutput<double>&,
                           int, bool (*)());

}  // namespace spectral_fast
