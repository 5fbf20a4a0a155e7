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

// p: the rows below, raw entries in and V out. top: b x b in double, R out in its upper triangle; where `dense` its lower
// triangle takes part in the reflectors (and holds their entries at the end), otherwise each reflector has one entry in it, its
// own row's. u: rows x b, the rows of U that belong to p. t: b x b.
template <bool dense, typename T>
static void factor_panel(T* p, int64_t rows, double* top, T* u, double* t) {
  typedef Simd<T> S;
  constexpr int b = Blocks<T>::block, vectors = Blocks<T>::vectors;
  alignas(64) T w[b] = {};
  double inverse[b], z[b], gram[b];
  for (int i = 0; i < b * b; ++i) t[i] = 0;

  for (int j = 0; j < b; ++j) {
    double below = panel_pass(p, rows, j, w, z);
    const int end = dense ? b : j + 1;  // rows of top that the reflector touches: j .. end
    for (int r = j + 1; r < end; ++r) below += top[r * b + j] * top[r * b + j];
    const Reflector h = make_reflector<T>(top[j * b + j], below);
    inverse[j] = h.inverse;
    for (int r = j + 1; r < end; ++r) top[r * b + j] *= h.inverse;

    for (int l = 0; l < b; ++l) {
      const double scale = l < j ? h.inverse * inverse[l] : h.inverse;
      double product = scale * z[l];
      if (dense || l > j) product += top[j * b + l];
      for (int r = j + 1; r < end; ++r) product += top[r * b + j] * top[r * b + l];
      gram[l] = product;
    }
    top[j * b + j] = h.beta;
    for (int l = 0; l <= j; ++l) w[l] = 0;
    for (int l = j + 1; l < b; ++l) {
      const double update = h.tau * gram[l];
      top[j * b + l] -= update;
      for (int r = j + 1; r < end; ++r) top[r * b + l] -= top[r * b + j] * update;
      w[l] = static_cast<T>(h.inverse * update);
    }
    for (int i = 0; i < j; ++i) {
      double product = 0;
      for (int l = i; l < j; ++l) product += t[i * b + l] * gram[l];
      t[i * b + j] = -h.tau * product;
    }
    t[j * b + j] = h.tau;
  }

  alignas(64) T scale[b], scaled_t[b * b];
  for (int l = 0; l < b; ++l) {
    scale[l] = static_cast<T>(inverse[l]);
    for (int j = 0; j < b; ++j) scaled_t[l * b + j] = static_cast<T>(t[l * b + j]);
  }
  constexpr int step = 4;
  for (int64_t i = 0; i < rows; i += step) {
    const int64_t end = i + step < rows ? i + step : rows;
    for (int64_t r = i; r < end; ++r)
      for (int c = 0; c < vectors; ++c)
        S::store(p + r * b + c * S::lanes, S::load(p + r * b + c * S::lanes) * S::load(scale + c * S::lanes));
    for (int64_t r = i; r < end; ++r) {
      typename S::Vector sum[vectors] = {};
      SF_UNROLL
      for (int l = 0; l < b; ++l)
        for (int c = 0; c < vectors; ++c) sum[c] += p[r * b + l] * S::load(scaled_t + l * b + c * S::lanes);
      for (int c = 0; c < vectors; ++c) S::store(u + r * b + c * S::lanes, sum[c]);
    }
  }
}
