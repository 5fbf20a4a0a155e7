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
static void bidiagonalize(DirectWorkspace ws, int64_t m, int64_t n, double* d, double* e) {
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
    update_and_multiply<2>(a, ld, k, m, from, RankOne{ws.v, ws.w}, RankOne{ws.y, ws.u}, ws.v_next, ws.sum, ws.part);
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
