// Stage `band`: dense m x n (m >= n) -> upper triangular band of width b with the same singular values, by blocked two-sided
// Householder reduction (Grosser and Lang 1999; the first stage of PLASMA's and SLATE's SVD).
//
// For each block of columns: QR of the panel, I - V1 T1 V1^T from the left; QR of the transposed row panel that it leaves,
// I - V2 T2 V2^T from the right. Both updates of the trailing matrix are one:
//
//   A <- A - V1 W - Y V2^T,   W = U1^T A,   Y = A U2 - V1 (W U2),   U = V T         (panel.inl)
//
// and it is applied in the pass that forms W of the next panel, so a block costs two passes over A:
//   pass 1, by strips   A <- A - V1 W - Y V2^T;  W <- U1^T A with the next U1; the row panel, less V1 W
//   pass 2, by rows     Y <- A U2 - V1 (W U2)
// 4 m n^2 - 4/3 n^3 flops, 8 b an entry and block for 12 bytes (float32) moved.
//
// Strips and blocks of rows are the pieces of work of a team; the panels between them are one thread's work, O(n^2 b) in all.

template <typename T>
struct BandWorkspace {
  Strips<T> a;        // m_padded x n_padded, zero outside m x n
  Strips<T> w, z;     // b x n_padded each: W and V2^T
  T *v, *v_next, *y;  // m_padded x b; row i belongs to row i of a
  T* u;               // max(m_padded, n_padded) x b
  T* q;               // n_padded x b: the row panel transposed, then V2
  T* m;               // b x b: W U2
  double *top, *t;    // b x b
};

// The band, row by row with stride `stride`: the diagonals -b .. 2 b that `bidiagonal` fills, so that every window of it is a
// dense matrix with row stride `stride`. Rows n .. n + 2 b are zero.
// In double: the chase rounds every entry some 2 n times, in float32 it alone would err by several units.
template <int b>
struct BandStorage {
  static constexpr int64_t stride = 3 * b - 1;
  static inline int64_t size(int64_t n) { return (n + 2 * b) * (stride + 1) + 2 * b; }
  static inline double* at(double* band, int64_t i, int64_t j) { return band + b + i * stride + j; }
};

static constexpr int64_t band_row_piece = 96;  // rows in a piece of work: four tiles of A U

// Columns k .. k + b of rows k .. m, with the pending update, into v_next.
template <typename T>
static void gather_panel(const BandWorkspace<T>& ws, int64_t k, int64_t rows, bool pending, const Team& team) {
  constexpr int b = Blocks<T>::block, ld = Blocks<T>::strip_columns, vectors = Blocks<T>::vectors;
  typedef Simd<T> S;
  parallel_for(team, (rows - k + band_row_piece - 1) / band_row_piece, [&](int64_t piece) {
    const int64_t first = k + piece * band_row_piece;
    const int64_t last = first + band_row_piece < rows ? first + band_row_piece : rows;
    // The registers of a panel may lie in two strips.
    for (int c = 0; c < vectors; ++c) {
      const int64_t j = k + c * S::lanes;
      T* const a = ws.a.at(first, j);
      if (pending)
        update_strip<2, false>(1, a, last - first, ws.v + first * b, ws.w.at(0, j), ws.y + first * b, ws.z.at(0, j),
                               static_cast<const T*>(nullptr), static_cast<T*>(nullptr));
      for (int64_t i = first; i < last; ++i) S::store(ws.v_next + i * b + c * S::lanes, S::load(a + (i - first) * ld));
    }
  });
}

// Pass 1 for the registers of strip s from column `from` on.
template <typename T>
static void update_and_gather_rows(const BandWorkspace<T>& ws, int64_t k, int64_t rows, int64_t s, int64_t from, int64_t to,
                                   bool pending) {
  constexpr int b = Blocks<T>::block, ld = Blocks<T>::strip_columns;
  typedef Simd<T> S;
  typedef typename S::Vector V;
  const int64_t begin = s * ld > from ? s * ld : from, end = (s + 1) * ld < to ? (s + 1) * ld : to;
  const int count = static_cast<int>((end - begin) / S::lanes);
  T* const a = ws.a.at(k, begin);
  T* const w = ws.w.at(0, begin);
  alignas(64) T sum[b * ld];
  if (pending)
    update_strip<2, true>(count, a, rows - k, ws.v + k * b, w, ws.y + k * b, ws.z.at(0, begin), ws.u + k * b, sum);
  else
    update_strip<0, true>(count, a, rows - k, ws.v, w, ws.y, w, ws.u + k * b, sum);
  for (int c = 0; c < count; ++c) {
    for (int p = 0; p < b; ++p) S::store(w + p * ld + c * S::lanes, S::load(sum + p * ld + c * S::lanes));
    // The row panel after the left reflectors, transposed a square of lanes at a time.
    for (int g = 0; g < b; g += S::lanes) {
      V x[S::lanes];
      SF_UNROLL
      for (int r = 0; r < S::lanes; ++r) {
        V taken{};
        for (int p = 0; p < b; ++p) taken += ws.v_next[(k + g + r) * b + p] * S::load(sum + p * ld + c * S::lanes);
        x[r] = S::load(a + (g + r) * ld + c * S::lanes) - taken;
      }
      S::transpose(x);
      const int64_t j = begin + c * S::lanes - from;
      SF_UNROLL
      for (int l = 0; l < S::lanes; ++l) S::store(ws.q + (j + l) * b + g, x[l]);
    }
  }
}

// z <- V2^T, n_rest columns from column `from` on.
template <typename T>
static void transpose_reflectors(const BandWorkspace<T>& ws, int64_t from, int64_t rest) {
  constexpr int b = Blocks<T>::block, ld = Blocks<T>::strip_columns;
  typedef Simd<T> S;
  for (int64_t j = 0; j < rest; j += S::lanes) {
    T* const z = ws.z.at(0, from + j);
    for (int g = 0; g < b; g += S::lanes) {
      typename S::Vector x[S::lanes];
      SF_UNROLL
      for (int l = 0; l < S::lanes; ++l) x[l] = S::load(ws.q + (j + l) * b + g);
      S::transpose(x);
      SF_UNROLL
      for (int r = 0; r < S::lanes; ++r) S::store(z + (g + r) * ld, x[r]);
    }
  }
}

// Factors the b x b block on top of `panel` (rows x b) and what is below it, and puts V and U of all rows in place.
// top: R, upper triangle.
template <typename T>
static void factor_square_panel(const BandWorkspace<T>& ws, T* panel, int64_t rows, T* u) {
  constexpr int b = Blocks<T>::block;
  for (int i = 0; i < b * b; ++i) ws.top[i] = panel[i];
  factor_panel<true>(panel + b * b, rows - b, b, ws.top, u + b * b, ws.t);
  for (int r = 0; r < b; ++r) {
    for (int j = 0; j < b; ++j) panel[r * b + j] = r == j ? T(1) : r > j ? static_cast<T>(ws.top[r * b + j]) : T(0);
    double row[b];
    for (int j = 0; j < b; ++j) row[j] = ws.t[r * b + j];
    for (int l = 0; l < r; ++l)
      for (int j = 0; j < b; ++j) row[j] += ws.top[r * b + l] * ws.t[l * b + j];
    for (int j = 0; j < b; ++j) u[r * b + j] = static_cast<T>(row[j]);
  }
}

// ws.a (m x n, padded to multiples of b with zeros) -> band, and its reflectors where they are kept. False if cancelled.
template <typename T>
static bool reduce_to_band(BandWorkspace<T> ws, int64_t padded_m, int64_t padded_n, double* band, const Team& team,
                           const Kept<T>* kept) {
  constexpr int b = Blocks<T>::block, ld = Blocks<T>::strip_columns;
  typedef BandStorage<b> Band;
  for (int64_t i = 0; i < Band::size(padded_n); ++i) band[i] = 0;

  for (int64_t k = 0; k < padded_n; k += b) {
    const bool pending = k > 0;
    gather_panel(ws, k, padded_m, pending, team);
    factor_square_panel(ws, ws.v_next + k * b, padded_m - k, ws.u + k * b);
    for (int r = 0; r < b; ++r)
      for (int j = r; j < b; ++j) *Band::at(band, k + r, k + j) = ws.top[r * b + j];
    if (kept) kept->left.keep_block(k / b, ws.v_next + k * b, ws.u + k * b, padded_m - k);
    const int64_t from = k + b, rest = padded_n - from;
    if (rest == 0) break;

    const int64_t first_strip = from / ld, strips = (padded_n + ld - 1) / ld - first_strip;
    parallel_for(team, strips,
                 [&](int64_t s) { update_and_gather_rows(ws, k, padded_m, first_strip + s, from, padded_n, pending); });
    if (cancelled(team)) return false;

    // L = R^T of the row panel's transpose.
    factor_square_panel(ws, ws.q, rest, ws.u);
    if (kept) kept->right.keep_block(k / b, ws.q, ws.u, rest);
    for (int r = 0; r < b; ++r)
      for (int c = 0; c <= r; ++c) *Band::at(band, k + r, from + c) = ws.top[c * b + r];
    transpose_reflectors(ws, from, rest);

    for (int i = 0; i < b * b; ++i) ws.m[i] = 0;
    multiply_strips(ws.w, 0, b, from, padded_n, ws.u, ws.m);
    parallel_for(team, (padded_m - from + band_row_piece - 1) / band_row_piece, [&](int64_t piece) {
      const int64_t first = from + piece * band_row_piece;
      const int64_t count = padded_m - first < band_row_piece ? padded_m - first : band_row_piece;
      typedef Simd<T> S;
      for (int64_t i = first; i < first + count; ++i) {
        for (int c = 0; c < Blocks<T>::vectors; ++c) {
          typename S::Vector sum{};
          SF_UNROLL
          for (int l = 0; l < b; ++l) sum -= ws.v_next[i * b + l] * S::load(ws.m + l * b + c * S::lanes);
          S::store(ws.y + i * b + c * S::lanes, sum);
        }
      }
      multiply_strips(ws.a, first, count, from, padded_n, ws.u, ws.y + first * b);
    });

    T* const swap = ws.v;
    ws.v = ws.v_next;
    ws.v_next = swap;
  }
  return true;
}
