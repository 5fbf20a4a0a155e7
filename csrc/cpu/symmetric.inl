// Eigenvalues and vectors of a small symmetric matrix, in double:  A = Z^T diag(d) Z, a vector a row of Z, d descending.
//
// Householder tridiagonalization, Q = H_0 H_1 ... H_(n-3) formed backwards, then QL steps with Wilkinson's implicit shift whose
// rotations turn the rows of Q^T (Bowdler, Martin, Reinsch and Wilkinson 1968; Golub & Van Loan 8.3). Absolute error of a few eps
// |A|. Rows are padded to registers and start on their boundaries, so that every inner loop is one over whole registers.
//
// cost   4/3 n^3 flops for the tridiagonal, 4/3 n^3 for Q, some 5 n^3 for the rotations. n = 32: 26 us.

// Rotations beyond these would mean that the shifts do not converge; 2 steps a value are usual.
static constexpr int symmetric_most_steps = 60;

struct SymmetricWorkspace {
  double* q;            // n x ld
  double *off, *v, *w;  // ld
  double* tau;          // ld
  int64_t* order;       // n

  static inline SymmetricWorkspace take(Arena& arena, int64_t n, int64_t ld) {
    SymmetricWorkspace ws;
    ws.q = arena.take<double>(n * ld);
    ws.off = arena.take<double>(ld);
    ws.v = arena.take<double>(ld);
    ws.w = arena.take<double>(ld);
    ws.tau = arena.take<double>(ld);
    ws.order = arena.take<int64_t>(n);
    return ws;
  }
};

// y += x a over whole registers.
static inline void add_multiple(double* y, double x, const double* a, int64_t from, int64_t ld) {
  for (int64_t j = from; j < ld; j += SimdD::lanes) SimdD::store(y + j, SimdD::load(y + j) + x * SimdD::load(a + j));
}

// b <- L^-1 b, L in the lower triangle of l; all s x ld.
static inline void solve_lower(const double* l, double* b, int64_t s, int64_t ld) {
  for (int64_t i = 0; i < s; ++i) {
    for (int64_t j = 0; j < i; ++j) add_multiple(b + i * ld, -l[i * ld + j], b + j * ld, 0, ld);
    const double inverse = 1 / l[i * ld + i];
    for (int64_t j = 0; j < ld; ++j) b[i * ld + j] *= inverse;
  }
}

// a (n x ld, symmetric, entries at most about 1 in size) is overwritten; behind column n it holds zeros. Returns false where the
// iteration does not converge.
static bool symmetric_eigen(int64_t n, int64_t ld, double* a, double* d, double* z, const SymmetricWorkspace& ws) {
  double *const v = ws.v, *const w = ws.w, *const off = ws.off, *const q = ws.q;
  for (int64_t k = 0; k < n; ++k) {
    double* const row = a + k * ld;
    d[k] = row[k];
    ws.tau[k] = 0;
    off[k] = k + 1 < n ? row[k + 1] : 0;
    double rest = 0;
    for (int64_t j = k + 2; j < n; ++j) rest += row[j] * row[j];
    if (rest < negligible_squared<double>) continue;
    const int64_t from = round_down(k + 1, SimdD::lanes);
    const double beta = -__builtin_copysign(__builtin_sqrt(row[k + 1] * row[k + 1] + rest), row[k + 1]);
    off[k] = beta;
    for (int64_t j = from; j < ld; ++j) v[j] = j > k && j < n ? row[j] : 0, w[j] = 0;
    v[k + 1] -= beta;
    const double tau = ws.tau[k] = 2 / (v[k + 1] * v[k + 1] + rest);
    for (int64_t i = k + 1; i < n; ++i) add_multiple(w, tau * v[i], a + i * ld, from, ld);
    double overlap = 0;
    for (int64_t j = k + 1; j < n; ++j) overlap += v[j] * w[j];
    for (int64_t j = from; j < ld; ++j) w[j] = j > k && j < n ? w[j] - tau / 2 * overlap * v[j] : 0;
    for (int64_t i = k + 1; i < n; ++i) {
      double* const r = a + i * ld;
      const double vi = v[i], wi = w[i];
      for (int64_t j = from; j < ld; j += SimdD::lanes)
        SimdD::store(r + j, SimdD::load(r + j) - vi * SimdD::load(w + j) - wi * SimdD::load(v + j));
    }
    for (int64_t j = k + 1; j < n; ++j) row[j] = v[j];
  }

  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < ld; ++j) q[i * ld + j] = i == j;
  for (int64_t k = n - 1; k-- > 0;) {
    const double tau = ws.tau[k];
    if (tau == 0) continue;
    const double* const of = a + k * ld;
    const int64_t from = round_down(k + 1, SimdD::lanes);
    for (int64_t j = from; j < ld; ++j) w[j] = 0;
    for (int64_t i = k + 1; i < n; ++i) add_multiple(w, of[i], q + i * ld, from, ld);
    for (int64_t i = k + 1; i < n; ++i) add_multiple(q + i * ld, -tau * of[i], w, from, ld);
  }
  // Its columns are what the rotations turn: as rows.
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < ld; ++j) a[i * ld + j] = j < n ? q[j * ld + i] : 0;

  constexpr double eps = 0x1p-53;
  for (int64_t l = 0; l < n; ++l) {
    for (int step = 0;; ++step) {
      int64_t m = l;
      while (m + 1 < n && __builtin_fabs(off[m]) > eps * (__builtin_fabs(d[m]) + __builtin_fabs(d[m + 1]))) ++m;
      if (m == l) break;
      if (step == symmetric_most_steps) return false;
      const double half = (d[l + 1] - d[l]) / (2 * off[l]);
      double g = d[m] - d[l] + off[l] / (half + __builtin_copysign(__builtin_sqrt(half * half + 1), half));
      double sine = 1, cosine = 1, moved = 0;
      int64_t i = m;
      while (i-- > l) {
        const double f = sine * off[i], b = cosine * off[i];
        const double r = __builtin_sqrt(f * f + g * g);
        off[i + 1] = r;
        if (r == 0) break;  // the matrix falls apart here
        sine = f / r, cosine = g / r;
        g = d[i + 1] - moved;
        const double t = (d[i] - g) * sine + 2 * cosine * b;
        moved = sine * t;
        d[i + 1] = g + moved;
        g = cosine * t - b;
        double *const upper = a + i * ld, *const lower = upper + ld;
        for (int64_t j = 0; j < ld; j += SimdD::lanes) {
          const VectorD x = SimdD::load(upper + j), y = SimdD::load(lower + j);
          SimdD::store(lower + j, sine * x + cosine * y);
          SimdD::store(upper + j, cosine * x - sine * y);
        }
      }
      if (i >= l) {
        d[i + 1] -= moved;
        off[m] = 0;
        continue;
      }
      d[l] -= moved;
      off[l] = g;
      off[m] = 0;
    }
  }

  for (int64_t i = 0; i < n; ++i) {
    int64_t at = i;
    for (; at > 0 && d[ws.order[at - 1]] < d[i]; --at) ws.order[at] = ws.order[at - 1];
    ws.order[at] = i;
  }
  for (int64_t i = 0; i < n; ++i) w[i] = d[ws.order[i]];
  for (int64_t i = 0; i < n; ++i) {
    d[i] = w[i];
    for (int64_t j = 0; j < ld; ++j) z[i * ld + j] = a[ws.order[i] * ld + j];
  }
  return true;
}
