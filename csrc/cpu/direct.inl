// Stage `bidiagonal` of small matrices: dense m x n (m >= n) -> upper bidiagonal, a column at a time (Golub & Kahan 1965).
//
// Column k is cleared below the diagonal by a left reflector v, row k right of the superdiagonal by a right reflector u.
// Both updates of a step are one rank-2 update (LAPACK xGEBRD, Howell et al. 2008, "Cache efficient bidiagonalization"):
//
//   A <- A - v w^T - y u^T,   w = tau_v A^T v,   y = tau_u (A u - v (w^T u))
//
// and it is applied in the same pass over A that forms A^T v of the next step, so a step costs two passes:
//   pass 1  A <- A - v w^T - y u^T,  sum <- A^T v_next      (one read, one write)
//   pass 2  A u                                             (one read)
// 4 m n^2 - 4/3 n^3 flops, bound by the bandwidth of the cache level that holds A: 24 bytes for 8 flops.

struct DirectWorkspace {
  double* a;                        // m x ld, row-major, columns from n to ld zero
  double *w, *u, *sum, *part;       // ld
  double* lost;                     // ld
  double *v, *y, *v_next, *y_next;  // m
  int64_t ld;
};

// y_i <- tau (a_i . u - v_i wu) for the rows from `first` on.
static inline void multiply_rows(const double* a, int64_t ld, int64_t first, int64_t m, int64_t from, const double* u,
                                 const double* v, double wu, double tau, double* y) {
  typedef SimdD S;
  typedef typename S::Vector V;
  int64_t i = first;
  for (; i + 4 <= m; i += 4) {
    const double* a0 = a + i * ld;
    const double *a1 = a0 + ld, *a2 = a1 + ld, *a3 = a2 + ld;
    V s0{}, s1{}, s2{}, s3{};
    for (int64_t j = from; j < ld; j += S::lanes) {
      const V uj = S::load(u + j);
      s0 += S::load(a0 + j) * uj;
      s1 += S::load(a1 + j) * uj;
      s2 += S::load(a2 + j) * uj;
      s3 += S::load(a3 + j) * uj;
    }
    y[i] = static_cast<double>(tau * (S::sum(s0) - v[i] * wu));
    y[i + 1] = static_cast<double>(tau * (S::sum(s1) - v[i + 1] * wu));
    y[i + 2] = static_cast<double>(tau * (S::sum(s2) - v[i + 2] * wu));
    y[i + 3] = static_cast<double>(tau * (S::sum(s3) - v[i + 3] * wu));
  }
  for (; i < m; ++i) {
    V s0{};
    for (int64_t j = from; j < ld; j += S::lanes) s0 += S::load(a + i * ld + j) * S::load(u + j);
    y[i] = static_cast<double>(tau * (S::sum(s0) - v[i] * wu));
  }
}

// d: n diagonal entries, e: n - 1 superdiagonal entries. ws.a is destroyed.
static void bidiagonalize_directly(DirectWorkspace ws, int64_t m, int64_t n, double* d, double* e) {
  const int64_t ld = ws.ld;
  double* const a = ws.a;
  for (int64_t i = 0; i < m; ++i) ws.v[i] = ws.y[i] = 0;
  for (int64_t j = 0; j < ld; ++j) ws.w[j] = ws.u[j] = 0;

  for (int64_t k = 0; k < n; ++k) {
    // Left reflector from column k, which still lacks the pending update.
    for (int64_t i = k; i < m; ++i) ws.v_next[i] = a[i * ld + k] - ws.v[i] * ws.w[k] - ws.y[i] * ws.u[k];
    const double* below = ws.v_next + k + 1;
    const Reflector left = make_reflector<double>(ws.v_next[k], compensated_dot(below, below, m - k - 1));
    d[k] = left.beta;
    if (k + 1 == n) break;
    ws.v_next[k] = 1;
    for (int64_t i = k + 1; i < m; ++i) ws.v_next[i] = ws.v_next[i] * left.inverse;

    // w and u are zero up to column k, so a start on a register boundary changes nothing left of k + 1.
    ws.w[k] = ws.u[k] = 0;
    const int64_t from = round_down(k + 1, SimdD::lanes);
    update_and_multiply<2, false>(a, ld, k, m, from, RankOne{ws.v, ws.w}, RankOne{ws.y, ws.u}, ws.v_next, ws.sum, nullptr,
                                  ws.part);
    for (int64_t j = from; j <= k; ++j) ws.w[j] = 0;
    for (int64_t j = k + 1; j < n; ++j) ws.w[j] = left.tau * ws.sum[j];

    // Right reflector from row k after the left one.
    for (int64_t j = k + 1; j < n; ++j) ws.u[j] = a[k * ld + j] - ws.w[j];
    const double* beyond = ws.u + k + 2;
    const Reflector right = make_reflector<double>(ws.u[k + 1], compensated_dot(beyond, beyond, n - k - 2));
    e[k] = right.beta;
    ws.u[k + 1] = 1;
    for (int64_t j = k + 2; j < n; ++j) ws.u[j] = ws.u[j] * right.inverse;
    const double wu = compensated_dot(ws.w + k + 1, ws.u + k + 1, n - k - 1);
    multiply_rows(a, ld, k + 1, m, from, ws.u, ws.v_next, wu, right.tau, ws.y_next);

    double* swap = ws.v;
    ws.v = ws.v_next;
    ws.v_next = swap;
    swap = ws.y;
    ws.y = ws.y_next;
    ws.y_next = swap;
  }
}

// The same with reflectors that are exact to second order (householder.inl), for double output. Row k, column k and the first
// entries of the reflectors are Pairs while they last, so every number that goes into d, e or a reflector is rounded once.
static void bidiagonalize_precisely(DirectWorkspace ws, int64_t m, int64_t n, double* d, double* e) {
  const int64_t ld = ws.ld;
  double* const a = ws.a;
  for (int64_t i = 0; i < m; ++i) ws.v[i] = ws.y[i] = 0;
  for (int64_t j = 0; j < ld; ++j) ws.w[j] = ws.u[j] = 0;
  double w_first = 0;  // of column k; w and u hold zero there
  Pair u_first{0, 0};

  for (int64_t k = 0; k < n; ++k) {
    const auto entry = [&](int64_t i) { return Pair{a[i * ld + k], 0} - exact_product(ws.v[i], w_first) - u_first * ws.y[i]; };
    for (int64_t i = k + 1; i < m; ++i) ws.v_next[i] = rounded(entry(i));
    const double* below = ws.v_next + k + 1;
    const PreciseReflector left = make_precise_reflector(normalized(entry(k)), precise_dot(below, below, m - k - 1));
    d[k] = left.beta;
    if (k + 1 == n) break;

    const int64_t from = round_down(k + 1, SimdD::lanes);
    update_and_multiply<2, true>(a, ld, k + 1, m, from, RankOne{ws.v, ws.w}, RankOne{ws.y, ws.u}, ws.v_next, ws.sum, ws.lost,
                                 ws.part);
    const double* const row = a + k * ld;
    const double v_k = ws.v[k], y_k = ws.y[k];
    for (int64_t j = from; j < ld; ++j) {
      const Pair x = Pair{row[j], 0} - exact_product(ws.w[j], v_k) - exact_product(ws.u[j], y_k);
      ws.w[j] = rounded((x * left.first + Pair{ws.sum[j], -ws.lost[j]}) * left.inverse);
      ws.u[j] = rounded(x - left.first * ws.w[j]);
    }
    for (int64_t j = from; j <= k; ++j) ws.w[j] = ws.u[j] = 0;

    const double* beyond = ws.u + k + 2;
    const PreciseReflector right = make_precise_reflector({ws.u[k + 1], 0}, precise_dot(beyond, beyond, n - k - 2));
    e[k] = right.beta;
    w_first = ws.w[k + 1], u_first = right.first;
    const Pair wu = normalized(precise_dot(ws.w + k + 2, beyond, n - k - 2) + u_first * w_first);
    ws.w[k + 1] = ws.u[k + 1] = 0;
    multiply_rows(a, ld, k + 1, m, round_down(k + 2, SimdD::lanes), ws.u, ws.v_next, 0, 1, ws.y_next);
    for (int64_t i = k + 1; i < m; ++i) {
      const Pair x = u_first * a[i * ld + k + 1] - wu * ws.v_next[i];
      ws.y_next[i] = rounded((x + Pair{ws.y_next[i], 0}) * right.inverse);
    }

    double* swap = ws.v;
    ws.v = ws.v_next;
    ws.v_next = swap;
    swap = ws.y;
    ws.y = ws.y_next;
    ws.y_next = swap;
  }
}
