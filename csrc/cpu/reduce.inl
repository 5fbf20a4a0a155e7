// Stage `reduce`: tall m x n -> n x n upper triangle R with the same singular values (blocked Householder QR).
//
// Rows arrive in chunks that stay in the second-level cache, and each chunk is folded into the triangle of those before it, a
// block of b columns at a time:
//
//   [R; C] -> [R'; 0],  V = [I; V_c]:   W = T^T R_k + U_c^T C,   R_k <- R_k - W,   C <- C - V_c W       (panel.inl)
//
// (the flat-tree TSQR of Demmel, Grigori, Hoemmen, Langou 2012; tile QR in PLASMA). The input is read once, and the working set
// is the triangle and one chunk, however tall the matrix is. The update of C is fused with the product of the next block: one
// read and one write of the chunk for each block. 2 m n^2 flops.
//
// R is rounded once for every chunk, so in float32 it would lose about sqrt(chunks) / 4 units. It is kept in double; its rows are
// stored without what lies left of their block, so that it takes no more room than the square that it becomes.

// For every chunk the triangle passes by, so few rows cost much: 3072 x 768 float32 takes 39 ms with chunks of 85 rows, 25 with
// 256 and with 512; 8192 x 2048 gains up to 800 (AMD Zen 5, 1 MiB L2, 32 MiB L3).
static constexpr int64_t reduce_chunk_rows = 512;

template <typename T>
struct ReducePanel {
  T *v, *u;   // chunk_rows x b
  double* t;  // b x b
};

template <typename T>
struct ReduceWorkspace {
  double* r;                // triangle_size(n)
  Strips<T> c;              // chunk_rows x n
  Strips<T> w;              // b x n: V_c W pending; the next W
  ReducePanel<T> panel[3];  // of the pending update, of this block and of the next
  int64_t chunk_rows;
};

// Row i of R starts at its block's first column k and has padded_n - k entries.
template <typename T>
static inline double* triangle_row(double* r, int64_t padded_n, int64_t i) {
  constexpr int b = Blocks<T>::block;
  const int64_t p = i / b;  // blocks above have b rows of padded_n, padded_n - b, ...
  return r + b * (p * padded_n - b * (p * (p - 1) / 2)) + (i - p * b) * (padded_n - p * b);
}

template <typename T>
static inline int64_t triangle_size(int64_t padded_n) {
  constexpr int b = Blocks<T>::block;
  const int64_t p = padded_n / b;
  return b * (p * padded_n - b * (p * (p - 1) / 2));
}

// QR of the columns k .. k + b: takes the pending update, from `before` if there is one, to them and to the rows k .. k + b of R.
template <typename T>
static void factor_block(const ReduceWorkspace<T>& ws, int64_t n, int64_t k, int64_t rows, const ReducePanel<T>* before,
                         const ReducePanel<T>& panel) {
  constexpr int b = Blocks<T>::block, ld = Blocks<T>::strip_columns;
  const int64_t padded_n = round_up(n, b);
  typedef Simd<T> S;
  // The registers of a panel may lie in several strips.
  for (int c = 0; c < Blocks<T>::vectors; ++c) {
    const int64_t j = k + c * S::lanes;
    T* const a = ws.c.at(0, j);
    if (before) {
      const T* const w = ws.w.at(0, j);
      update_strip<1, false>(1, a, rows, before->v, w, before->v, w, before->u, static_cast<T*>(nullptr));
    }
    for (int64_t i = 0; i < rows; ++i) S::store(panel.v + i * b + c * S::lanes, S::load(a + i * ld));
  }
  double top[b * b];
  for (int r = 0; r < b; ++r)
    for (int j = 0; j < b; ++j) top[r * b + j] = j < r ? 0 : triangle_row<T>(ws.r, padded_n, k + r)[j];
  factor_panel<false>(panel.v, rows, static_cast<int>(n - k < b ? n - k : b), top, k + b < padded_n ? panel.u : nullptr, panel.t);
  for (int r = 0; r < b; ++r)
    for (int j = r; j < b; ++j) triangle_row<T>(ws.r, padded_n, k + r)[j] = top[r * b + j];
}

// Strip s from column `from` on: pending update, W, and the rows k .. k + b of R.
template <typename T>
static void fold_strip(const ReduceWorkspace<T>& ws, int64_t padded_n, int64_t k, int64_t rows, int64_t s,
                       const ReducePanel<T>* before, const ReducePanel<T>& panel) {
  constexpr int b = Blocks<T>::block, ld = Blocks<T>::strip_columns;
  const int64_t from = k + b, begin = s * ld > from ? s * ld : from, end = (s + 1) * ld < padded_n ? (s + 1) * ld : padded_n;
  const int cols = static_cast<int>(end - begin), count = cols / Simd<T>::lanes;
  T* const w = ws.w.at(0, begin);
  alignas(64) T sum[b * ld];
  if (before)
    update_strip<1, true>(count, ws.c.at(0, begin), rows, before->v, w, before->v, w, panel.u, sum);
  else
    update_strip<0, true>(count, ws.c.at(0, begin), rows, panel.v, w, panel.v, w, panel.u, sum);

  double* r[b];
  for (int p = 0; p < b; ++p) r[p] = triangle_row<T>(ws.r, padded_n, k + p) + (begin - k);
  // From the last row up: W_p needs the rows of R above it as they were.
  for (int p = b - 1; p >= 0; --p) {
    double z[ld];
    for (int j = 0; j < cols; ++j) z[j] = sum[p * ld + j];
    for (int l = 0; l <= p; ++l) {
      const double t = panel.t[l * b + p];
      for (int j = 0; j < cols; ++j) z[j] += t * r[l][j];
    }
    for (int j = 0; j < cols; ++j) {
      w[p * ld + j] = static_cast<T>(z[j]);
      r[p][j] -= z[j];
    }
  }
}

// Folds the first `rows` rows of ws.c into ws.r. False if cancelled.
//
// The pieces of a block's work are its strips. The first piece goes on to the next block's panel as soon as it has that panel's
// columns, so that a team does not wait for one thread to factor it.
template <typename T>
static bool reduce_fold(const ReduceWorkspace<T>& ws, int64_t rows, int64_t n, const Team& team) {
  constexpr int b = Blocks<T>::block, ld = Blocks<T>::strip_columns;
  const int64_t padded_n = round_up(n, b);
  const ReducePanel<T>* before = nullptr;
  factor_block(ws, n, 0, rows, before, ws.panel[0]);
  for (int64_t k = 0; k + b < padded_n; k += b) {
    const ReducePanel<T>&panel = ws.panel[k / b % 3], &next = ws.panel[(k / b + 1) % 3];
    const int64_t from = k + b, first = from / ld, ahead = (from + b - 1) / ld + 1, strips = Strips<T>::count(padded_n);
    parallel_for(team, 1 + strips - ahead, [&](int64_t piece) {
      if (piece > 0) return fold_strip(ws, padded_n, k, rows, ahead + piece - 1, before, panel);
      for (int64_t s = first; s < ahead; ++s) fold_strip(ws, padded_n, k, rows, s, before, panel);
      factor_block(ws, n, from, rows, &panel, next);
    });
    if (cancelled(team)) return false;
    before = &panel;
  }
  return true;
}

// R as the square matrix that the next stage reads.
template <typename T>
static void load_triangle(const double* r, int64_t padded_n, const Strips<T>& a) {
  constexpr int b = Blocks<T>::block;
  for (int64_t i = 0; i < padded_n; ++i) {
    const int64_t first = i / b * b;
    const double* row = triangle_row<T>(const_cast<double*>(r), padded_n, i);
    for (int64_t j = 0; j < padded_n; j += Simd<T>::lanes) {
      T* const to = a.at(i, j);
      for (int l = 0; l < Simd<T>::lanes; ++l) to[l] = j + l >= i ? static_cast<T>(row[j + l - first]) : T(0);
    }
  }
}
