// Householder QR of a panel of `block` columns, b, and the compact form of its product of reflectors
// (LAPACK xGEQRT; Schreiber and Van Loan 1989):
//
//   H_1 H_2 ... H_b = I - V T V^T,  U = V T,   so  H^T A = A - V (U^T A)  and  A H = A - (A U) V^T
//
// with T upper triangular: T_jj = tau_j, T_{0..j, j} = -tau_j T_{0..j, 0..j} V_{0..j}^T v_j.
//
// The panel is a top block of b rows, kept in double, and the rows below it, stored row by row. One pass over the rows below does
// for column j the update by reflector j - 1, the products with column j, and the square of its norm:
//
//   row <- row - c_{j-1} w,   z <- z + c_j row,   norm <- norm + c_j^2           c_j: entry j of the row
//
// Entries left of j stay in the row as they were when their reflector was made, so z holds the inner products of the update
// (right of j) and those of T (left of j) at once. Reflectors are scaled to v_0 = 1 in a last pass, which also forms U.
// b passes of 4 rows b flops, in registers; the rows are read from the first or second level cache.

static constexpr int64_t panel_sum_rows = 32;

template <typename T>
struct ColumnNorm;  // sum of squares, to a unit of double or better

template <>
struct ColumnNorm<float> {
  double sum = 0;
  inline void add(float x) { sum += static_cast<double>(x) * x; }
  inline double value() const { return sum; }
};

template <>
struct ColumnNorm<double> {
  double sum = 0, lost = 0;
  inline void add(double x) {
    const double term = x * x - lost, total = sum + term;
    lost = (total - sum) - term;
    sum = total;
  }
  inline double value() const { return sum - lost; }
};

// One pass over `rows` rows: the pending update by column j - 1 (none for j = 0), then z += c_j row; returns the sum of c_j^2.
template <typename T>
static double panel_pass(T* p, int64_t rows, int j, const T* w, double* z) {
  typedef Simd<T> S;
  typedef typename S::Vector V;
  constexpr int b = Blocks<T>::block, vectors = Blocks<T>::vectors, unroll = 4;
  const int before = j > 0 ? j - 1 : 0;
  V pending[vectors];
  for (int c = 0; c < vectors; ++c) pending[c] = S::load(w + c * S::lanes);
  ColumnNorm<T> norm[unroll];
  V total[vectors] = {};
  for (int64_t first = 0; first < rows; first += panel_sum_rows) {
    const int64_t last = first + panel_sum_rows < rows ? first + panel_sum_rows : rows;
    V part[unroll][vectors] = {};
    int64_t i = first;
    for (; i + unroll <= last; i += unroll) {
      SF_UNROLL
      for (int r = 0; r < unroll; ++r) {
        T* const row = p + (i + r) * b;
        V x[vectors];
        const T c_before = row[before];
        SF_UNROLL
        for (int c = 0; c < vectors; ++c) {
          x[c] = S::load(row + c * S::lanes) - c_before * pending[c];
          S::store(row + c * S::lanes, x[c]);
        }
        const T c_now = row[j];
        norm[r].add(c_now);
        SF_UNROLL
        for (int c = 0; c < vectors; ++c) part[r][c] += c_now * x[c];
      }
    }
    for (; i < last; ++i) {
      T* const row = p + i * b;
      const T c_before = row[before];
      for (int c = 0; c < vectors; ++c) S::store(row + c * S::lanes, S::load(row + c * S::lanes) - c_before * pending[c]);
      const T c_now = row[j];
      norm[0].add(c_now);
      for (int c = 0; c < vectors; ++c) part[0][c] += c_now * S::load(row + c * S::lanes);
    }
    for (int c = 0; c < vectors; ++c) total[c] += (part[0][c] + part[1][c]) + (part[2][c] + part[3][c]);
  }
  for (int c = 0; c < vectors; ++c)
    for (int l = 0; l < S::lanes; ++l) z[c * S::lanes + l] = total[c][l];
  return (norm[0].value() + norm[1].value()) + (norm[2].value() + norm[3].value());
}

// V <- raw entries scaled, U <- V T.
template <typename T>
static void scale_panel(T* p, int64_t rows, const double* inverse, const double* t, T* u) {
  typedef Simd<T> S;
  constexpr int b = Blocks<T>::block, vectors = Blocks<T>::vectors, step = 8 / vectors;
  alignas(64) T scale[b], t_rounded[b * b];
  for (int l = 0; l < b; ++l) scale[l] = static_cast<T>(inverse[l]);
  for (int l = 0; l < b * b; ++l) t_rounded[l] = static_cast<T>(t[l]);
  for (int64_t i = 0; i < rows * b; i += b)
    for (int c = 0; c < b; c += S::lanes) S::store(p + i + c, S::load(p + i + c) * S::load(scale + c));

  int64_t i = 0;
  for (; i + step <= rows; i += step) {
    typename S::Vector sum[step][vectors] = {};
    for (int l = 0; l < b; ++l) {
      SF_UNROLL
      for (int r = 0; r < step; ++r) {
        SF_UNROLL
        for (int c = 0; c < vectors; ++c) sum[r][c] += p[(i + r) * b + l] * S::load(t_rounded + l * b + c * S::lanes);
      }
    }
    SF_UNROLL
    for (int r = 0; r < step; ++r) {
      SF_UNROLL
      for (int c = 0; c < vectors; ++c) S::store(u + (i + r) * b + c * S::lanes, sum[r][c]);
    }
  }
  for (; i < rows; ++i) {
    for (int c = 0; c < vectors; ++c) {
      typename S::Vector sum{};
      for (int l = 0; l < b; ++l) sum += p[i * b + l] * S::load(t_rounded + l * b + c * S::lanes);
      S::store(u + i * b + c * S::lanes, sum);
    }
  }
}

// The first `columns` columns of a panel; the others are zero and stay so.
// p: the rows below, raw entries in and V out. top: b x b in double, R out in its upper triangle; where `dense` its lower
// triangle takes part in the reflectors (and holds their entries at the end), otherwise each reflector has one entry in it, its
// own row's. u: rows x b, the rows of U that belong to p; null where only R is wanted. t: b x b.
template <bool dense, typename T>
static void factor_panel(T* p, int64_t rows, int columns, double* top, T* u, double* t) {
  constexpr int b = Blocks<T>::block;
  alignas(64) T w[b] = {};
  double inverse[b] = {}, z[b], gram[b];
  double t_transposed[b * b] = {};

  for (int j = 0; j < columns; ++j) {
    double below = panel_pass(p, rows, j, w, z);
    const int end = dense ? b : j + 1;  // rows of top that the reflector touches: j .. end
    for (int r = j + 1; r < end; ++r) below += top[r * b + j] * top[r * b + j];
    const Reflector h = make_reflector<T>(top[j * b + j], below);
    inverse[j] = h.inverse;
    for (int r = j + 1; r < end; ++r) top[r * b + j] *= h.inverse;

    // Products of v_j with the columns: those on its right are to be updated, those on its left are reflectors.
    for (int l = 0; l < b; ++l) gram[l] = (l < j ? h.inverse * inverse[l] : h.inverse) * z[l];
    for (int l = dense ? 0 : j; l < b; ++l) gram[l] += top[j * b + l];
    for (int r = j + 1; r < end; ++r)
      for (int l = 0; l < b; ++l) gram[l] += top[r * b + j] * top[r * b + l];
    top[j * b + j] = h.beta;
    double update[b];
    for (int l = 0; l < b; ++l) update[l] = l > j ? h.tau * gram[l] : 0;
    for (int l = 0; l < b; ++l) w[l] = static_cast<T>(h.inverse * update[l]);
    for (int l = 0; l < b; ++l) top[j * b + l] -= update[l];
    for (int r = j + 1; r < end; ++r) {
      const double v = top[r * b + j];
      for (int l = 0; l < b; ++l) top[r * b + l] -= v * update[l];
    }
    double column[b] = {};
    for (int l = 0; l < j; ++l)
      for (int i = 0; i < b; ++i) column[i] += t_transposed[l * b + i] * gram[l];
    for (int i = 0; i < j; ++i) t_transposed[j * b + i] = -h.tau * column[i];
    t_transposed[j * b + j] = h.tau;
  }

  for (int l = 0; l < b; ++l)
    for (int j = 0; j < b; ++j) t[l * b + j] = t_transposed[j * b + l];
  if (u) scale_panel(p, rows, inverse, t, u);
}
