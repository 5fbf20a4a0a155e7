// The contract between the kernels and everything that calls them.
//
// A kernel knows neither torch nor Python: pointers, sizes and strides come in, values and a status go out.
//
//   svdvals      for each matrix A (rows x cols, k = min(rows, cols)) of a batch, writes the k singular values,
//                descending and >= 0, next to each other, and one info word.
//
//   input        any strides (in elements, zero and negative included) in any dimension; never written to.
//                float16 and bfloat16 are widened to float32 while they are read.
//   output       values: batch x k, contiguous; float32, or float64 for float64 input.
//   info         batch words. info_ok: the values hold the accuracy bound. info_nonfinite: A has a NaN or an infinity;
//                its values are NaN and no other matrix is affected.
//   accuracy     max |s_i - sigma_i| <= c eps sigma_1, c = 2 (k <= 128), 4 (k <= 1024), 8 above, eps of the output type,
//                or twice the error of LAPACK on the same matrix where that is larger. A few float64 matrices miss it (README,
//                Limits): up to k = 128, where reflectors are computed in pairs of doubles, 1 in 38000 hard ones that were
//                computed one at a time did, by 1.1 (tests/oracles/zoo.py and orthogonal matrices).
//   workspace    one block for each matrix in work, workspace_bytes(rows, cols) long, aligned to workspace_alignment.
//                A copy of the matrix or, where `reduce` runs, of its triangle in the output type (n^2) and in double (n^2 / 2);
//                O((m + n) b) for panels, 24 n b bytes for the band, a chunk of at most 512 rows.
//   cost         4 m n^2 - 4/3 n^3 flops (m >= n), or 2 m n^2 + 2 n^3 where `reduce` runs first (m > 5/3 n); 8 n^2 b more for the
//                band, b = 16 or 8 columns (blocks.inl); some 4 n^2 divisions.
//   determinism  the values depend on the matrix and the instruction set alone, not on threads, place or neighbours; on the
//                length of a batch only through group_size.
//   errors       none are raised below the bindings; a kernel never allocates.
//
//   Its stages, each in csrc/cpu/<stage>.inl with its mathematics and sources (m >= n; a wide matrix is read through its
//   transpose):
//
//   load         A -> working matrix, scaled by a power of two so that its largest entry is in [1, 2).
//   reduce       m x n, a chunk of rows at a time, -> n x n upper triangle. Blocked Householder QR. 2 m n^2 - 2/3 n^3 flops.
//   band         m x n -> upper band of width b. Blocked two-sided Householder reduction. 4 m n^2 - 4/3 n^3 flops.
//   bidiagonal   band -> d, e (n and n - 1 doubles). Bulge chasing, in double. 8 n^2 b flops. For n <= 128 from the matrix
//                itself, a column at a time and in double, 4 m n^2 - 4/3 n^3 flops.
//   values       d, e -> values. Laguerre's iteration certified by Sturm counts. n divisions a count, 3 to 6 counts a value.
//
//   All stages take a Team and share their work among its threads by pieces whose bits depend on their number alone. A stage
//   returns early once Team::cancelled answers true. None fails: the input of `reduce` and what follows is finite.
//
//   svdvals_gram   the same for tall matrices, for those who ask for driver "gram".
//
//   mathematics  `reduce` is the shifted Cholesky factor of the Gram matrix (gram.inl), and all stages are in double.
//   accuracy     s_i^2 within (n + m / 128 + 136) eps |A|_F^2, eps of double, and s_i rounded once. A rank-deficient matrix is
//                no exception.
//   workspace    n^2 doubles, a chunk of 128 rows, and what the stages after `reduce` take.
//   cost         m n^2 + 3 n^3 flops; 8 n^2 b more for the band.
//
//   svdvals_group  the same for `count` <= group_size small matrices of one shape and element type, one to a SIMD lane.
//
//   mathematics  Householder bidiagonalization, then dqds with Laguerre shifts, all lanes in lockstep, always in double. For
//                float64 columns are put in order, reflectors computed in pairs of doubles, and values bisected to the last bit.
//                Lanes never mix.
//   workspace    one block a group, group_workspace_bytes long: lanes x m x n doubles, and O((m + n) lanes) more.
//   cost         a matrix: 4 m n^2 - 4/3 n^3 flops and some 2 n^2 divisions (float64: 10 n^2). An incomplete group takes as
//                long as a full one.
//
//   gram_product    Z = A^T (A X) and energy = |A|_F^2, for A (rows x cols), X and Z (cols x columns, contiguous, output type).
//
//   mathematics  csrc/cpu/products.inl. Y = A X is never there as a whole: a block of rows adds its part to Z while it is in
//   cache. input        A: as for svdvals, a side of any length from 1 up; contiguous along one of the two directions is fast.
//   work         independent pieces of rows, gram_product_sizes().pieces of them. `begin` once writes X as the pieces read it
//   into
//                `vectors`. `piece` writes its part of Z into its partial, and returns its part of the energy; next_piece, any
//                number, is what the thread will go on with and changes no bit. `end` adds the partials in order, for rows
//                first .. last of Z.
//   workspace    `vectors`, and as much for each partial, next to each other: vectors_bytes = O(n s), at most 16 partials.
//                scratch_bytes a thread for a copy of 96 rows. All aligned to workspace_alignment.
//   cost         4 m n s flops, A read once.
//   accuracy     |Z - A^T (A X)| <= gamma_(n + m) |A|^T (|A| |X|) entry by entry in the output type; the energy to 12 units of
//                it, in practice one. float32: what has a square that overflows makes the energy infinite.
//   determinism  the bits depend on the matrix, its two strides, X and the instruction set. Columns of X may change each other's
//                bits, as their number chooses the kernel. What is not finite stays in its matrix; info is not needed.
//
//   look            a tracked look at a matrix of n columns: from V (n x vectors, orthonormal but for rounding) and Z = M X the
//                   Ritz values, what is pending, the next V; from probes, where there are any, a sum over the bulk and the
//                   drift.
//
//   mathematics  csrc/cpu/look.inl. Products are the caller's: X and Z (n x width) and, where they are repeated, next and Z
//   (n x padded) lie where `arrays` says.
//   work         steps in the order of LookStep. `piece` does a step for one of `pieces` independent pieces of rows; `small`,
//   when
//                all are done (of `write`: before), what they share, and says how it went. not_finite: T or G is not; values are
//                to be NaN, V stays. deficient: V has directions that M V does not, within rounding, and plain torch is to have
//                the look. Without probes there is no `project`. inner_again and turn_again: after a repeated product.
//   workspace    workspace_bytes for each matrix in work, some n (3 vectors + 4 probes) elements.
//   determinism  the bits depend on the inputs and the instruction set.
//
//   block_lanczos   `steps` steps of block Lanczos on M = A^T A from V (n x vectors, orthonormal but for rounding): of each step
//                   the diagonal block of T and the two factors of the block below it.
//
//   mathematics  csrc/cpu/lanczos.inl. Products are the caller's: X and Z (n x vectors) lie where `arrays` says.
//   work         `piece` of `start` once; then for each step Z = M X, and the phases in order, of each first `piece` for all
//                `pieces` independent pieces of rows and then `small`, which fills the step's blocks (vectors x vectors each);
//                `advance` writes the next X and has no `small`. scratch: one for each thread.
//   workspace    workspace_bytes for each matrix in work, some n vectors (steps + 4) elements.
//   cost         2 n vectors^2 (steps + 9) flops a step in the mean, beside its product.
//   errors       none. Where the space is exhausted a vector is 0, and so is its row of `second`; of a matrix that is not finite
//                `along` is not, and all vectors become 0.
//   determinism  the bits depend on the inputs and the instruction set.
//
//   vectors         singular vectors of a float32, float16 or bfloat16 matrix: u (m x n) and v (n x n), row by row, m >= n the
//                   sides of A, its transpose where it is wide. Where n > 128 and m <= 5/3 n.
//
//   mathematics  csrc/cpu/vectors.inl: the stages of svdvals, twisted factorizations, and the way back through all reflectors.
//   accuracy     U S V^T = A + E and U, V orthogonal, both to a multiple of eps that grows like that of LAPACK.
//   info         info_close, and nothing is written: values closer than 1e-8 of themselves or below 1e-8 sigma_1.
//   workspace    some 4 m n + 5 n^2 elements.
//   cost         that of svdvals, 4 n^3 flops for the chase, 4 m n^2 for the band.
//   determinism  the bits depend on the matrix and the instruction set.
//
//   stats           one spectrum, sigma_1 >= ... >= sigma_n, in double -> every field of SpectralStats, NaN if a value is < 0.
//
//   ranksize_slope  the same -> minus the slope of ln sigma_k on ln k over the positive values.
//
//   fit_powerlaw    one row, x_1 <= ... <= x_n, in double -> the power law of its positive values. xmin is a threshold, or NaN
//                   to search for it.
//
//   hill_alpha      the same -> Hill's exponent of the k largest positive values; k = 0 is the upper half of them.
//
//   mathematics  csrc/cpu/stats.inl and powerlaw.inl; docs/statistics.md has the formulas. The least KS distance that
//                fit_powerlaw finds is that of the full scan over every value.
//   input        readable up to a multiple of padded_values, zero behind the n >= 1 values; a NaN in the first place stands for a
//                row that has a NaN or an infinity: its results are NaN, its tail empty.
//   workspace    stats_workspace_bytes(n) for all four, some 10 doubles a value.
//   cost         of stats 3 logarithms a value and some 11 exponentials, Pareto samples included; 25 at worst seen.
#pragma once

#include <cstddef>
#include <cstdint>

namespace spectral_fast {

enum class ElementType : int { float32 = 0, float64 = 1, float16 = 2, bfloat16 = 3 };

constexpr int32_t info_ok = 0;
constexpr int32_t info_nonfinite = 1;
constexpr int32_t info_cancelled = 2;  // never seen by the caller of a batch: the call raises
constexpr int32_t info_close = 3;      // of `vectors`: equal or vanishing values

constexpr std::size_t workspace_alignment = 64;

constexpr int64_t largest_group = 16;

// One matrix, wherever it lies in memory.
struct MatrixView {
  const void* data;
  ElementType element;
  int64_t rows, cols;
  int64_t row_stride, col_stride;  // in elements
};

// The threads that share one matrix. A kernel hands out numbered pieces of work and goes on when all are done; which thread runs
// which piece changes no bit. Once `cancelled` answers true a kernel returns as soon as it can, with info_cancelled.
struct Team {
  int threads;
  void* pool;
  void (*run)(void* pool, int64_t count, void (*piece)(void* context, int64_t index), void* context);
  bool (*cancelled)(void* pool);  // asked by the thread that called the kernel, every few milliseconds of work
};

enum Stage : int { stage_load, stage_reduce, stage_band, stage_bidiagonal, stage_values, stage_count };

// What a stage's work is counted in, which is what bounds its time.
enum class Work : int { bytes = 0, flops_float32 = 1, flops_float64 = 2, divisions = 3 };

struct StageTime {
  double seconds;
  Work unit;
  double amount;  // by the formula of the stage's file, for the matrix as it is: padding does not count
};

// Where the time of one matrix went.
struct StageClock {
  double (*now)();  // seconds
  double last;      // when the stage before ended, or the call began
  StageTime stages[stage_count];
};

constexpr int64_t padded_values = 16;

// In the order of _ops.SMOOTH_FIELDS and FITTED_FIELDS.
struct SmoothStats {
  double spectral_norm, frobenius_norm, nuclear_norm, stable_rank, effective_rank, spectral_entropy, participation_ratio,
      condition_number, log_norm, alpha_hill, alpha_ranksize;
};
struct FittedStats {
  double alpha, alpha_stderr, xmin, ks_distance, n_tail, alpha_weighted, log_alpha_norm, mp_edge, mp_spikes;
};

// The Marchenko-Pastur bulk of a shape, in terms of the median of lambda. NaN where the shape is not known.
struct BulkEdge {
  double over_median;  // edge / median
  double slack;        // how far above the edge, relative to it, noise still reaches
};

// NaN where there is no fit, n_tail = 0.
struct PowerLawFit {
  double alpha, alpha_stderr, xmin, ks_distance;
};

struct GramProductSizes {
  int64_t pieces;
  std::size_t vectors_bytes, scratch_bytes;
};

struct LookShape {
  int64_t n, vectors;
  int64_t probes, drift_probes;  // the last `drift_probes` of them are for the drift; none: 0, 0
};

// All contiguous, rows of n.
template <typename Scalar>
struct LookInput {
  const Scalar* vectors;    // n x vectors
  const Scalar* fresh;      // n: normal, the next last vector
  const Scalar* probes;     // n x probes
  const Scalar* reference;  // n x drift_probes: M_0 times those
};

struct LookResult {
  double slope, constant, energy;  // given: the line of the control variates, |A|_F^2
  double *squares, *pending;       // to `vectors` values each
  double squares_sum, drift;
};

struct LookSizes {
  int64_t pieces, width, padded;
  std::size_t workspace_bytes;
};

template <typename Scalar>
struct LookArrays {
  Scalar *x, *z, *next;
};

enum class LookStep : int { gather, project, inner, turn, inner_again, turn_again, write };
enum class LookStatus : int { good = 0, not_finite = 1, deficient = 2 };

struct LanczosShape {
  int64_t n, vectors, steps;  // 1 <= vectors <= n
};

struct LanczosSizes {
  int64_t pieces;
  std::size_t workspace_bytes, scratch_bytes;
};

template <typename Scalar>
struct LanczosArrays {
  Scalar *x, *z;
};

// Of one step, vectors x vectors each: V^T M V, and the block below it is second first, both upper triangular.
struct LanczosBlocks {
  double *along, *first, *second;
};

// A vector of norm 1 that loses more than this to the vectors before it had nothing of its own.
constexpr double lanczos_exhausted = 0.1;

enum class LanczosPhase : int { start, recent, normalize, project, renormalize, advance };

// Where a spectrum has no gap at all, the estimate of what is pending must not divide by zero.
constexpr double look_smallest_gap = 0.01;

// What one instruction set offers. Scalar is the output type, and that of the arithmetic (small float32 matrices: double).
template <typename Scalar>
struct Kernels {
  std::size_t (*workspace_bytes)(int64_t rows, int64_t cols);
  void (*svdvals)(const MatrixView& a, Scalar* values, int32_t* info, void* workspace, const Team& team,
                  StageClock* clock);  // null: nobody asks

  // The same for driver "gram", where by_gram(rows, cols) of heuristics.inl.
  std::size_t (*gram_workspace_bytes)(int64_t rows, int64_t cols);
  void (*svdvals_gram)(const MatrixView& a, Scalar* values, int32_t* info, void* workspace, const Team& team, StageClock* clock);

  // Small matrices go through in groups, one to a lane. group_size, at most largest_group, is 1 where that does not pay.
  int64_t (*group_size)(int64_t rows, int64_t cols, int64_t batch);
  std::size_t (*group_workspace_bytes)(int64_t rows, int64_t cols);
  void (*svdvals_group)(const MatrixView* matrices, int64_t count, Scalar* values, int32_t* info, void* workspace);

  GramProductSizes (*gram_product_sizes)(const MatrixView& a, int64_t columns);
  void (*gram_product_begin)(const MatrixView& a, int64_t columns, const Scalar* x, void* vectors);
  double (*gram_product_piece)(const MatrixView& a, int64_t columns, int64_t piece, int64_t next_piece, const void* vectors,
                               void* partial, void* scratch);
  void (*gram_product_end)(const MatrixView& a, int64_t columns, const void* partials, int64_t first, int64_t last, Scalar* z);

  LookSizes (*look_sizes)(const LookShape& shape);
  LookArrays<Scalar> (*look_arrays)(const LookShape& shape, void* workspace);
  void (*look_piece)(const LookShape& shape, const LookInput<Scalar>& in, LookStep step, LookStatus status, int64_t piece,
                     void* workspace, Scalar* vectors);
  LookStatus (*look_small)(const LookShape& shape, LookStep step, void* workspace, LookResult* result);

  LanczosSizes (*lanczos_sizes)(const LanczosShape& shape);
  LanczosArrays<Scalar> (*lanczos_arrays)(const LanczosShape& shape, void* workspace);
  void (*lanczos_piece)(const LanczosShape& shape, const Scalar* start, LanczosPhase phase, int64_t step, int64_t piece,
                        void* workspace, void* scratch);
  void (*lanczos_small)(const LanczosShape& shape, LanczosPhase phase, int64_t step, void* workspace, const LanczosBlocks& out);
};

struct KernelTable {
  const char* isa;
  Kernels<float> float32;
  Kernels<double> float64;

  std::size_t (*stats_workspace_bytes)(int64_t n);
  void (*stats)(const double* sigma, int64_t n, const BulkEdge& edge, SmoothStats* smooth, FittedStats* fitted, void* workspace);
  double (*ranksize_slope)(const double* sigma, int64_t n, void* workspace);
  void (*fit_powerlaw)(const double* x, int64_t n, double xmin, PowerLawFit* fit, int64_t* n_tail, void* workspace);
  double (*hill_alpha)(const double* x, int64_t n, int64_t k, void* workspace);

  // The most that one thread can do of `unit`, bytes excepted, out of registers: runs for a time proportional to `rounds` and
  // returns how much it did.
  double (*peak)(Work unit, int64_t rounds);

  // For float32, float16 or bfloat16, vectors_exist(rows, cols) of heuristics.inl. Returns the info word.
  std::size_t (*vectors_workspace_bytes)(int64_t rows, int64_t cols);
  int32_t (*vectors)(const MatrixView& a, float* u, float* v, void* workspace, const Team& team);
};

}  // namespace spectral_fast
