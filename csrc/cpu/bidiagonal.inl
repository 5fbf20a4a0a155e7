// Stage `bidiagonal`: upper triangular band of width b -> upper bidiagonal with the same singular values, by bulge chasing with
// Householder reflectors (Lang 1996; Haidar, Kurzak, Luszczek 2013; LAPACK's xGBBRD does it with rotations).
//
// Sweep i clears row i right of the superdiagonal with a reflector v on b columns. What that fills in below the diagonal is
// chased down the band, b rows a step. Step p works on two b x b windows, D on the diagonal and E right of it:
//
//   D <- D (I - tau v v^T);   u from the first column of D;   D <- (I - tau u u^T) D
//   E <- (I - tau u u^T) E;   v from the first row of E;      E <- E (I - tau v v^T)
//
// Only the first column and the first row of a bulge are cleared: the rest is in the next sweep's windows, one row further.
// 8 n^2 b flops in n^2 / 2b steps, each a chain of some 200 cycles (two norms, two square roots, four divisions).
//
// Step p of sweep i needs step p + 1 of sweep i - 1 and nothing later. `group_sweeps` sweeps advance together, each two steps
// behind the one before: their steps are independent, so one fills the waits of the other, and the windows stay in the first
// level cache. Groups run on the threads of a team, the same distance apart.

static constexpr int group_sweeps = 4;  // AMD Zen 5, AVX-512, b = 16: 100 ns a step, one sweep at a time 135

template <int b>
struct ChaseReflector {
  VectorD v[b / SimdD::lanes];
  double excess;  // tau - 1, where tau is in [1, 2], and zero for v = 0: y + excess y is tau y with a finer tau
};

// x -> reflector; returns beta.
template <int b>
static inline __attribute__((always_inline)) double chase_reflector(const VectorD* x, ChaseReflector<b>& h) {
  constexpr int vectors = b / SimdD::lanes;
  VectorD squares = SimdD::with_first(x[0], 0) * SimdD::with_first(x[0], 0);
  SF_UNROLL
  for (int c = 1; c < vectors; ++c) squares += x[c] * x[c];
  const double x0 = x[0][0];
  const Reflector r = make_reflector<double>(x0, SimdD::tree_sum(squares));
  SF_UNROLL
  for (int c = 0; c < vectors; ++c) h.v[c] = c == 0 ? SimdD::with_first(x[0] * r.inverse, 1) : x[c] * r.inverse;
  // tau = 2 / |v|^2, for v as the rounded inverse makes it: an H that is not orthogonal would stretch equal values apart.
  const double rounding = r.inverse * (x0 - r.beta) - 1;
  h.excess = r.tau - rounding * r.tau * (2 - r.tau) - 1;
  return r.beta;
}

// x (b rows) <- x (I - tau v v^T)
template <int b>
static inline __attribute__((always_inline)) void apply_right(VectorD (*x)[b / SimdD::lanes], const ChaseReflector<b>& h) {
  constexpr int vectors = b / SimdD::lanes;
  alignas(64) double y[b];
  SF_UNROLL
  for (int g = 0; g < b; g += SimdD::lanes) {
    const VectorD sums = SimdD::row_sums([&](int r) __attribute__((always_inline)) {
      VectorD product = x[g + r][0] * h.v[0];
      SF_UNROLL
      for (int c = 1; c < vectors; ++c) product += x[g + r][c] * h.v[c];
      return product;
    });
    SimdD::store(y + g, sums + sums * h.excess);
  }
  SF_UNROLL
  for (int r = 0; r < b; ++r) {
    SF_UNROLL
    for (int c = 0; c < vectors; ++c) x[r][c] -= y[r] * h.v[c];
  }
}

// x (b rows) <- (I - tau u u^T) x, the entries of u being in memory.
template <int b>
static inline __attribute__((always_inline)) void apply_left(VectorD (*x)[b / SimdD::lanes], const double* u, double excess) {
  constexpr int vectors = b / SimdD::lanes;
  SF_UNROLL
  for (int c = 0; c < vectors; ++c) {
    VectorD z[4] = {};
    SF_UNROLL
    for (int r = 0; r < b; ++r) z[r % 4] += u[r] * x[r][c];
    const VectorD product = (z[0] + z[1]) + (z[2] + z[3]), sum = product + product * excess;
    SF_UNROLL
    for (int r = 0; r < b; ++r) x[r][c] -= u[r] * sum;
  }
}

template <int b>
static inline __attribute__((always_inline)) void load_window(const double* window, VectorD (*x)[b / SimdD::lanes]) {
  SF_UNROLL
  for (int r = 0; r < b; ++r) {
    SF_UNROLL
    for (int c = 0; c < b / SimdD::lanes; ++c)
      x[r][c] = SimdD::load_unaligned(window + r * BandStorage<b>::stride + c * SimdD::lanes);
  }
}

template <int b>
static inline __attribute__((always_inline)) void store_window(double* window, const VectorD (*x)[b / SimdD::lanes]) {
  SF_UNROLL
  for (int r = 0; r < b; ++r) {
    SF_UNROLL
    for (int c = 0; c < b / SimdD::lanes; ++c)
      SimdD::store_unaligned(window + r * BandStorage<b>::stride + c * SimdD::lanes, x[r][c]);
  }
}

// D <- D (I - tau v v^T), and u from its first column. Returns the entry that replaces the column.
template <int b>
static inline double chase_columns(double* d, const ChaseReflector<b>& right, ChaseReflector<b>& left) {
  VectorD x[b][b / SimdD::lanes];
  load_window<b>(d, x);
  apply_right(x, right);
  store_window<b>(d, x);
  VectorD column[b / SimdD::lanes];
  SF_UNROLL
  for (int c = 0; c < b / SimdD::lanes; ++c)
    column[c] = SimdD::first_column([&](int r) __attribute__((always_inline)) { return x[c * SimdD::lanes + r][0]; });
  return chase_reflector(column, left);
}

// [D E] <- (I - tau u u^T) [D E], v from the first row of E, E <- E (I - tau v v^T).
template <int b>
static inline void chase_rows(double* d, double beta, const ChaseReflector<b>& left, ChaseReflector<b>& right) {
  constexpr int vectors = b / SimdD::lanes;
  VectorD x[b][vectors];
  alignas(64) double u[b];
  SF_UNROLL
  for (int c = 0; c < vectors; ++c) SimdD::store(u + c * SimdD::lanes, left.v[c]);
  load_window<b>(d + b, x);
  apply_left<b>(x, u, left.excess);
  const double beta_right = chase_reflector(x[0], right);
  apply_right(x, right);
  SF_UNROLL
  for (int c = 0; c < vectors; ++c) x[0][c] = VectorD{};
  x[0][0] = SimdD::with_first(x[0][0], (beta_right));
  store_window<b>(d + b, x);

  load_window<b>(d, x);
  apply_left<b>(x, u, left.excess);
  SF_UNROLL
  for (int r = 0; r < b; ++r) x[r][0] = SimdD::with_first(x[r][0], r == 0 ? (beta) : 0.0);
  store_window<b>(d, x);
}

// Sweeps first .. first + group_sweeps of an n x n band. done[g]: how far group g has come, in ticks; a tick is one step of each
// of its sweeps.
template <int b, typename T>
static void chase_group(double* band, int64_t n, int64_t group, double* d, double* e, int64_t* done, const Kept<T>* kept) {
  typedef BandStorage<b> Band;
  constexpr int64_t lag = 2 * (group_sweeps - 1);
  const int64_t first = group * group_sweeps;
  const int64_t steps = (n - 2 - first) / b + 1;  // of the longest sweep
  ChaseReflector<b> right[group_sweeps], left[group_sweeps];

  for (int64_t tick = 0; tick < steps + lag; ++tick) {
    // The last sweep of the group before is through with step tick + 1.
    if (group > 0) wait_until(done + group - 1, tick + 2 + lag);
    double beta[group_sweeps];
    for (int s = 0; s < group_sweeps; ++s) {
      const int64_t i = first + s, p = tick - 2 * s, row = i + 1 + p * b;
      if (p < 0 || row >= n) continue;
      if (p == 0) {
        VectorD x[b / SimdD::lanes];
        for (int c = 0; c < b / SimdD::lanes; ++c) x[c] = SimdD::load_unaligned(Band::at(band, i, i + 1) + c * SimdD::lanes);
        e[i] = chase_reflector(x, right[s]);
      }
      beta[s] = chase_columns(Band::at(band, row, row), right[s], left[s]);
      if (p == 0) d[row] = beta[s];
      if (kept) kept->keep_step(i, p, left[s], right[s]);
    }
    for (int s = 0; s < group_sweeps; ++s) {
      const int64_t p = tick - 2 * s, row = first + s + 1 + p * b;
      if (p < 0 || row >= n) continue;
      chase_rows(Band::at(band, row, row), beta[s], left[s], right[s]);
    }
    __atomic_store_n(done + group, tick + 1, __ATOMIC_RELEASE);
  }
  // Later groups wait for ticks that a shorter group does not have.
  __atomic_store_n(done + group, INT64_MAX, __ATOMIC_RELEASE);
}

// d: n diagonal entries, e: n - 1 superdiagonal entries, done: n / group_sweeps + 1. False if cancelled.
template <int b, typename T>
static bool bidiagonalize_band(double* band, int64_t n, double* d, double* e, int64_t* done, const Team& team,
                               const Kept<T>* kept) {
  constexpr int64_t flops_between_polls = 1 << 30;
  const int64_t groups = (n - 1 + group_sweeps - 1) / group_sweeps;
  const int64_t together = 1 + flops_between_polls / (8 * n * b * group_sweeps);
  d[0] = *BandStorage<b>::at(band, 0, 0);
  for (int64_t g = 0; g < groups; ++g) done[g] = 0;
  for (int64_t first = 0; first < groups; first += together) {
    const int64_t count = first + together < groups ? together : groups - first;
    parallel_for(team, count, [&](int64_t g) { chase_group<b>(band, n, first + g, d, e, done, kept); });
    if (cancelled(team)) return false;
  }
  return true;
}
