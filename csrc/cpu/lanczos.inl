// Block Lanczos on M = A^T A (Golub and Underwood 1977): all of a step but the product Z = M V (products.inl). V, n x s, is the
// last block of the basis Q; A_j is a diagonal block of T, R_2 R_1 the block below it.
//
//   recent        W = Z - [V_before, V] [V_before, V]^T Z          A_j = V^T Z
//   normalize     W^T W + shift = R_1^T R_1,  V' = W R_1^-1        shifted Cholesky QR (Fukaya et al. 2020)
//   project       W' = V' - Q Q^T V'                               rounding along all of Q, large once W has been divided
//   renormalize   W'^T W' = R_2^T R_2                              Cholesky QR: orthonormal to rounding (Yamamoto et al. 2015)
//   advance       V = W' R_2^-1
//
// W, W', Q, and the sums over a piece in T; squares, factors and what they are applied to in double. For float32 the square of a
// condition number is then nothing to lose: double rounds as float32's square does. For float64 the shift, 16 eps of the mean
// square, is 6e-8 of a vector: a direction of W below a tenth of that ends there. What it would have changed of an eigenvalue is
// the square of it, below eps.
//
// A vector that W' has less than 0.1 of, or that came of an R_1 within rounding, has nothing of its own: it becomes 0, and so
// does its row of R_2. So it goes with all of them where something is not finite.
//
// cost   a step with k vectors behind it: 4 n s (k + 2 s) flops in T, 8 n s^2 in double. n = 768, s = 8, 12 steps: 20 and 5 Mflop
//        beside 226 of the products of a square matrix.
//
// ladder all steps but the products, one thread (AVX-512), a matrix:   768 (s = 8)   1024 (8)   2048 (16, 10 steps)
//          torch: QR by Householder, bmm, groups of a batch               1.2 ms       1.75 ms    8.0 ms
//          this                                                           0.34 ms      0.46 ms    2.0 ms
//        and the products 2.1 -> 1.7, 3.8 -> 3.3, 20.6 -> 18.4 ms: the matrix is still in a cache when the next one begins.

template <typename T>
struct LanczosWorkspace {
  typedef Panels<T, SF_VECTOR_BYTES / 2> Half;
  int64_t n, s, steps;
  bool half;               // half a register holds s columns
  int64_t padded, square;  // s in whole units, and in those of double
  int64_t ldq, pieces;
  T *x, *z;             // n x s
  T *q, *w;             // n x ldq, n x padded
  T *parts, *taken;     // padded x ldq of each piece; ldq x padded: what is subtracted
  double* grams;        // square x square of each piece
  double* total;        // padded x ldq
  double *g, *inverse;  // s x square
  double* turn;         // s x square: L^-T
  double* first;        // s: the diagonal of R_1
  double* size;         // largest entry of T so far; a power of two near it, and one over that
  int64_t* kept;        // s: not zero

  static LanczosWorkspace of(const LanczosShape& shape, void* block, std::size_t* bytes) {
    LanczosWorkspace ws{};
    ws.n = shape.n, ws.s = shape.vectors, ws.steps = shape.steps;
    ws.half = ws.s <= Half::lanes && Half::lanes >= Half::height;
    ws.padded = round_up(ws.s, ws.half ? Half::unit : Panels<T>::unit);
    ws.square = round_up(ws.s, Panels<double>::unit);
    ws.ldq = leading_dimension<T>(ws.s * ws.steps);
    ws.pieces = (ws.n + panel_rows - 1) / panel_rows;
    Arena arena{static_cast<char*>(block), 0};
    ws.x = arena.take<T>(ws.n * ws.s);
    ws.z = arena.take<T>(ws.n * ws.s);
    ws.q = arena.take<T>(ws.n * ws.ldq);
    ws.w = arena.take<T>(ws.n * ws.padded);
    ws.parts = arena.take<T>(ws.pieces * ws.padded * ws.ldq);
    ws.taken = arena.take<T>(ws.ldq * ws.padded);
    ws.grams = arena.take<double>(ws.pieces * ws.square * ws.square);
    ws.total = arena.take<double>(ws.padded * ws.ldq);
    ws.g = arena.take<double>(ws.s * ws.square), ws.inverse = arena.take<double>(ws.s * ws.square);
    ws.turn = arena.take<double>(ws.s * ws.square);
    ws.first = arena.take<double>(ws.s), ws.size = arena.take<double>(3);
    ws.kept = arena.take<int64_t>(ws.s);
    if (bytes) *bytes = arena.used;
    return ws;
  }

  inline int64_t first_row(int64_t piece) const { return piece * panel_rows; }
  inline int64_t rows(int64_t piece) const { return n - first_row(piece) < panel_rows ? n - first_row(piece) : panel_rows; }
  inline T* part(int64_t piece) const { return parts + piece * padded * ldq; }
  inline double* gram(int64_t piece) const { return grams + piece * square * square; }

  // Columns of Q that a phase takes part of: those of the last `blocks` blocks of `step`, from a register's boundary on.
  struct Columns {
    int64_t first, count, aligned, width;  // [first, first + count) within [aligned, aligned + width)
  };
  inline Columns last(int64_t step, int64_t blocks) const {
    const int64_t end = (step + 1) * s, first = end > blocks * s ? end - blocks * s : 0;
    const int64_t aligned = round_down(first, Simd<T>::lanes);
    return {first, end - first, aligned, round_up(end - aligned, Simd<T>::lanes)};
  }
  inline Columns of(LanczosPhase phase, int64_t step) const { return last(step, phase == LanczosPhase::recent ? 2 : step + 1); }
};

template <typename T>
static LanczosSizes lanczos_sizes(const LanczosShape& shape) {
  std::size_t bytes = 0;
  const LanczosWorkspace<T> ws = LanczosWorkspace<T>::of(shape, nullptr, &bytes);
  return {ws.pieces, bytes, 2 * panel_rows * ws.square * sizeof(double)};
}

template <typename T>
static LanczosArrays<T> lanczos_arrays(const LanczosShape& shape, void* block) {
  const LanczosWorkspace<T> ws = LanczosWorkspace<T>::of(shape, block, nullptr);
  return {ws.x, ws.z};
}

// W^T Q, of a piece.
template <typename T>
static void lanczos_overlap(const LanczosWorkspace<T>& ws, LanczosPhase phase, int64_t step, int64_t piece) {
  const auto columns = ws.of(phase, step);
  const int64_t first = ws.first_row(piece);
  Panels<T>::inner(ws.w + first * ws.padded, ws.padded, round_up(ws.s, Panels<T>::height),
                   ws.q + first * ws.ldq + columns.aligned, ws.ldq, columns.width, ws.rows(piece), ws.part(piece), columns.width);
}

template <typename T>
static void lanczos_total(const LanczosWorkspace<T>& ws, LanczosPhase phase, int64_t step, double* along) {
  const auto columns = ws.of(phase, step);
  const int64_t s = ws.s, count = s * columns.width, from = columns.first - columns.aligned;
  for (int64_t i = 0; i < count; ++i) ws.total[i] = ws.parts[i];
  for (int64_t p = 1; p < ws.pieces; ++p)
    for (int64_t i = 0; i < count; ++i) ws.total[i] += ws.part(p)[i];
  for (int64_t k = 0; k < columns.count; ++k)
    for (int64_t i = 0; i < ws.padded; ++i)
      ws.taken[k * ws.padded + i] = i < s ? static_cast<T>(-ws.total[i * columns.width + from + k]) : 0;
  if (phase != LanczosPhase::recent) return;

  double largest = step ? ws.size[0] : 0;
  for (int64_t i = 0; i < s; ++i)
    for (int64_t k = 0; k < columns.count; ++k) {
      const double entry = ws.total[i * columns.width + from + k], size = __builtin_fabs(entry);
      largest = largest < size ? size : largest;
      if (k >= columns.count - s) along[i * s + k - (columns.count - s)] = entry;
    }
  ws.size[0] = largest;
  int exponent = 0;
  if (largest > 0 && largest <= 0x1.fffffffffffffp1023) static_cast<void>(__builtin_frexp(largest, &exponent));
  ws.size[1] = __builtin_ldexp(1.0, exponent), ws.size[2] = __builtin_ldexp(1.0, -exponent);
}

// W in double, times `scale`.
template <typename T>
static inline void lanczos_widen(const LanczosWorkspace<T>& ws, int64_t piece, double scale, double* wide) {
  constexpr int64_t unit = Panels<double>::unit;
  const T* const w = ws.w + ws.first_row(piece) * ws.padded;
  for (int64_t i = 0; i < ws.rows(piece); ++i)
    for (int64_t j = 0; j < ws.square; j += unit)
      for (int64_t l = 0; l < unit; ++l) wide[i * ws.square + j + l] = scale * w[i * ws.padded + j + l];
}

// W less what `taken` has of Q, and its part of W^T W.
template <typename T>
static void lanczos_subtract(const LanczosWorkspace<T>& ws, LanczosPhase phase, int64_t step, int64_t piece, double scale,
                             double* wide) {
  const auto columns = ws.of(phase, step);
  const int64_t first = ws.first_row(piece), rows = ws.rows(piece);
  T* const w = ws.w + first * ws.padded;
  const T* const q = ws.q + first * ws.ldq + columns.first;
  if (ws.half)
    LanczosWorkspace<T>::Half::update(q, ws.ldq, ws.taken, ws.padded, columns.count, rows, ws.padded, w, ws.padded);
  else
    Panels<T>::update(q, ws.ldq, ws.taken, ws.padded, columns.count, rows, ws.padded, w, ws.padded);
  lanczos_widen(ws, piece, scale, wide);
  Panels<double>::inner(wide, ws.square, ws.square, wide, ws.square, ws.square, rows, ws.gram(piece), ws.square);
}

// W (rows x square, in double) times `turn`, into the other half of scratch.
template <typename T>
static const double* lanczos_turn(const LanczosWorkspace<T>& ws, int64_t piece, double scale, double* scratch) {
  const int64_t rows = ws.rows(piece);
  double* const turned = scratch + panel_rows * ws.square;
  lanczos_widen(ws, piece, scale, scratch);
  for (int64_t i = 0; i < rows * ws.square; ++i) turned[i] = 0;
  Panels<double>::update(scratch, ws.square, ws.turn, ws.square, ws.s, rows, ws.square, turned, ws.square);
  return turned;
}

// The Gram matrix -> L below its diagonal, leaving out each vector that is not `kept` or whose pivot is not above `least`; R =
// L^T times `scale`, 0 in the rows of those; turn = L^-T, 0 in their columns.
template <typename T>
static void lanczos_factor(const LanczosWorkspace<T>& ws, double shift, double least, double scale, double* r) {
  const int64_t s = ws.s, ld = ws.square;
  double* const l = ws.g;
  for (int64_t i = 0; i < s; ++i)
    for (int64_t j = 0; j <= i; ++j) {
      double sum = l[i * ld + j];
      for (int64_t k = 0; k < j; ++k) sum -= l[i * ld + k] * l[j * ld + k];
      if (j < i) {
        l[i * ld + j] = ws.kept[j] ? sum / l[j * ld + j] : 0;
      } else {
        sum += shift;
        ws.kept[i] = ws.kept[i] && sum > least;
        l[i * ld + i] = ws.kept[i] ? __builtin_sqrt(sum) : 1;
      }
    }
  for (int64_t i = 0; i < s; ++i)
    for (int64_t j = 0; j < s; ++j) r[i * s + j] = j >= i && ws.kept[i] ? scale * l[j * ld + i] : 0;
  for (int64_t i = 0; i < s; ++i)
    for (int64_t j = 0; j < ld; ++j) ws.inverse[i * ld + j] = i == j;
  solve_lower(l, ws.inverse, s, ld);
  for (int64_t i = 0; i < s; ++i)
    for (int64_t j = 0; j < ld; ++j) ws.turn[i * ld + j] = j < s && ws.kept[j] ? ws.inverse[j * ld + i] : 0;
}

template <typename T>
static double lanczos_gram(const LanczosWorkspace<T>& ws) {
  const int64_t s = ws.s, ld = ws.square;
  for (int64_t i = 0; i < s * ld; ++i) ws.g[i] = ws.grams[i];
  for (int64_t p = 1; p < ws.pieces; ++p)
    for (int64_t i = 0; i < s * ld; ++i) ws.g[i] += ws.gram(p)[i];
  double trace = 0;
  for (int64_t i = 0; i < s; ++i) trace += ws.g[i * ld + i];
  return trace;
}

template <typename T>
static void lanczos_small(const LanczosShape& shape, LanczosPhase phase, int64_t step, void* block, const LanczosBlocks& out) {
  constexpr double eps = 0x1p-52, rounding = sizeof(T) == sizeof(double) ? 0x1p-52 : 0x1p-23;
  const LanczosWorkspace<T> ws = LanczosWorkspace<T>::of(shape, block, nullptr);
  if (phase == LanczosPhase::recent || phase == LanczosPhase::project) {
    lanczos_total(ws, phase, step, out.along);
  } else if (phase == LanczosPhase::normalize) {
    const double trace = lanczos_gram(ws);
    for (int64_t i = 0; i < ws.s; ++i) ws.kept[i] = 1;
    lanczos_factor(ws, 16 * eps / ws.s * trace + 0x1p-1022, 0, ws.size[1], out.first);
    for (int64_t i = 0; i < ws.s; ++i) ws.first[i] = out.first[i * ws.s + i];
  } else if (phase == LanczosPhase::renormalize) {
    lanczos_gram(ws);
    for (int64_t i = 0; i < ws.s; ++i) ws.kept[i] = ws.first[i] > 4 * rounding * ws.size[0];
    lanczos_factor(ws, 0, lanczos_exhausted * lanczos_exhausted, 1, out.second);
  }
}

template <typename T>
static void lanczos_piece(const LanczosShape& shape, const T* start, LanczosPhase phase, int64_t step, int64_t piece, void* block,
                          void* scratch) {
  const LanczosWorkspace<T> ws = LanczosWorkspace<T>::of(shape, block, nullptr);
  const int64_t first = ws.first_row(piece), last = first + ws.rows(piece), s = ws.s;
  double* const wide = static_cast<double*>(scratch);
  if (phase == LanczosPhase::start) {
    for (int64_t i = first; i < last; ++i)
      for (int64_t j = 0; j < s; ++j) ws.x[i * s + j] = ws.q[i * ws.ldq + j] = start[i * s + j];
  } else if (phase == LanczosPhase::recent) {
    for (int64_t i = first; i < last; ++i)
      for (int64_t j = 0; j < ws.padded; ++j) ws.w[i * ws.padded + j] = j < s ? ws.z[i * s + j] : 0;
    lanczos_overlap(ws, phase, step, piece);
  } else if (phase == LanczosPhase::normalize) {
    lanczos_subtract(ws, LanczosPhase::recent, step, piece, ws.size[2], wide);
  } else if (phase == LanczosPhase::project) {
    const double* const turned = lanczos_turn(ws, piece, ws.size[2], wide);
    for (int64_t i = first; i < last; ++i)
      for (int64_t j = 0; j < ws.square; ++j) ws.w[i * ws.padded + j] = static_cast<T>(turned[(i - first) * ws.square + j]);
    lanczos_overlap(ws, phase, step, piece);
  } else if (phase == LanczosPhase::renormalize) {
    lanczos_subtract(ws, LanczosPhase::project, step, piece, 1, wide);
  } else {
    const double* const turned = lanczos_turn(ws, piece, 1, wide);
    T* const q = ws.q + (step + 1) * s;
    for (int64_t i = first; i < last; ++i)
      for (int64_t j = 0; j < s; ++j)
        ws.x[i * s + j] = q[i * ws.ldq + j] = ws.kept[j] ? static_cast<T>(turned[(i - first) * ws.square + j]) : 0;
  }
}
