// Batches of matrices on their way to the kernel gram_product.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "dispatch.h"
#include "spectra.h"

namespace spectral_fast {

// Z = A^T (A X) and the energy of every matrix A (rows x cols, neither zero) of a batch. x and z: batch x cols x columns,
// contiguous; Scalar is float (float32, float16, bfloat16 matrices) or double; columns > 0.
// Throws std::bad_alloc. interrupted: as in svdvals() of dispatch.h; returns false once it answered true, and z and energy hold
// nothing.
template <typename Scalar>
bool gram_product(const BatchView& batch, const Scalar* x, int64_t columns, Scalar* z, double* energy, int threads,
                  bool (*interrupted)());

// At least `bytes`, aligned for a kernel. Throws std::bad_alloc.
inline Block poisoned(std::size_t bytes) {
  Block block = allocate(bytes);
#ifdef SF_POISON  // tests/test_build.py: NaN wherever a kernel has not written
  std::memset(block.get(), 0xff, bytes);
#endif
  return block;
}

// Products with matrices of one shape, whatever their strides.
template <typename Scalar>
class GramProducts {
 public:
  GramProducts(const Kernels<Scalar>& kernel, const MatrixView* matrices, int64_t count, int64_t columns)
      : kernel_(kernel), matrices_(matrices), columns_(columns), cols_(matrices->cols), scratch_bytes_(0) {
    for (int64_t index = 0; index < count; ++index) {
      sizes_ = kernel_.gram_product_sizes(matrices[index], columns);
      scratch_bytes_ = std::max(scratch_bytes_, sizes_.scratch_bytes);
    }
  }

  int64_t pieces() const { return sizes_.pieces; }

  // A matrix's X and partials, and its pieces' energies.
  struct Space {
    Block vectors, partials;
    std::vector<double> energies;
  };
  Space space() const {
    return {poisoned(sizes_.vectors_bytes), poisoned(sizes_.vectors_bytes * sizes_.pieces), std::vector<double>(sizes_.pieces)};
  }
  Block scratch() const { return poisoned(scratch_bytes_); }

  // By run(count, f) of rounds.h; scratch_of(worker) is that worker's. False: cancelled.
  template <typename ScratchOf, typename Run>
  bool multiply(int64_t index, const Scalar* x, Space& space, const ScratchOf& scratch_of, const Run& run, Scalar* z) const {
    const MatrixView& a = matrices_[index];
    Block::pointer const vectors = space.vectors.get(), partials = space.partials.get();
    kernel_.gram_product_begin(a, columns_, x, vectors);
    const int64_t count = pieces();
    if (!run(count, [&](int64_t piece, int worker) {
          const auto partial = partials + piece * static_cast<int64_t>(sizes_.vectors_bytes);
          space.energies[piece] = kernel_.gram_product_piece(a, columns_, piece, piece + 1, vectors, partial, scratch_of(worker));
        }))
      return false;
    // Rows of Z, in as many parts: that changes no bit.
    return run(count, [&](int64_t part, int) {
      kernel_.gram_product_end(a, columns_, partials, cols_ * part / count, cols_ * (part + 1) / count, z);
    });
  }
  static double energy(const Space& space) {
    double total = 0;
    for (const double energy : space.energies) total += energy;
    return total;
  }

 private:
  const Kernels<Scalar>& kernel_;
  const MatrixView* const matrices_;
  const int64_t columns_, cols_;
  GramProductSizes sizes_;
  std::size_t scratch_bytes_;
};

// Below this many flops a thread that has to be woken comes too late: some 50 us of work.
inline int64_t threads_worth(double flops) { return static_cast<int64_t>(std::min(flops / 5e6, 1e6)); }

}  // namespace spectral_fast
