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
// A window of 16 x 16 float32 is sixteen AVX-512 registers: it is read, multiplied from both sides and written once.
// 8 n^2 b flops, n^2 / 2b steps, each a chain of some 200 cycles (two norms, two square roots, four divisions).
//
// Step p of sweep i needs step p + 1 of sweep i - 1 and nothing later. `group_sweeps` sweeps advance together, each two steps
// behind the one before: their steps are independent, so one fills the waits of the other, and the windows stay in the first
// level cache. Groups run on the threads of a team, the same distance apart.

static constexpr int group_sweeps = 4;

template <typename T>
struct ChaseReflector {
  typename Simd<T>::Vector v[Blocks<T>::vectors];
  T excess;  // tau - 1, where tau is in [1, 2], and zero for v = 0: y + excess y is tau y with a finer tau
};

static inline double sum_of_squares(const Simd<float>::Vector& x) {
  const SimdD::Vector low = Simd<float>::widen<0>(x), high = Simd<float>::widen<1>(x);
  return SimdD::tree_sum(low * low + high * high);
}
static inline double sum_of_squares(const SimdD::Vector& x) { return SimdD::tree_sum(x * x); }

// x -> reflector; returns beta.
template <typename T>
static inline __attribute__((always_inline)) double chase_reflector(const typename Simd<T>::Vector* x, ChaseReflector<T>& h) {
  constexpr int vectors = Blocks<T>::vectors;
  const T x0 = x[0][0];
  double rest = sum_of_squares(Simd<T>::with_first(x[0], 0));
  SF_UNROLL
  for (int c = 1; c < vectors; ++c) rest += sum_of_squares(x[c]);
  const Reflector r = make_reflector<T>(x0, rest);
  const T inverse = static_cast<T>(r.inverse);
  SF_UNROLL
  for (int c = 0; c < vectors; ++c) h.v[c] = c == 0 ? Simd<T>::with_first(x[0] * inverse, 1) : x[c] * inverse;
  // tau = 2 / |v|^2, for v as the rounded inverse makes it: an H that is not orthogonal would stretch equal values apart.
  const double rounding = inverse * (x0 - r.beta) - 1;
  h.excess = static_cast<T>(r.tau - rounding * r.tau * (2 - r.tau) - 1);
  return r.beta;
}

// x (b rows) <- x (I - tau v v^T)
template <typename T>
static inline __attribute__((always_inline)) void apply_right(typename Simd<T>::Vector (*x)[Blocks<T>::vectors],
                                                              const ChaseReflector<T>& h) {
  typedef Simd<T> S;
  constexpr int b = Blocks<T>::block, vectors = Blocks<T>::vectors;
  alignas(64) T y[b];
  SF_UNROLL
  for (int g = 0; g < b; g += S::lanes) {
    const typename S::Vector sums = S::row_sums([&](int r) __attribute__((always_inline)) {
      typename S::Vector product = x[g + r][0] * h.v[0];
      SF_UNROLL
      for (int c = 1; c < vectors; ++c) product += x[g + r][c] * h.v[c];
      return product;
    });
    S::store(y + g, sums + sums * h.excess);
  }
  SF_UNROLL
  for (int r = 0; r < b; ++r) {
    SF_UNROLL
    for (int c = 0; c < vectors; ++c) x[r][c] -= y[r] * h.v[c];
  }
}

// x (b rows) <- (I - tau u u^T) x, the entries of u being in memory.
template <typename T>
static inline __attribute__((always_inline)) void apply_left(typename Simd<T>::Vector (*x)[Blocks<T>::vectors], const T* u,
                                                             T excess) {
  constexpr int b = Blocks<T>::block, vectors = Blocks<T>::vectors;
  SF_UNROLL
  for (int c = 0; c < vectors; ++c) {
    typename Simd<T>::Vector z[4] = {};
    SF_UNROLL
    for (int r = 0; r < b; ++r) z[r % 4] += u[r] * x[r][c];
    const typename Simd<T>::Vector product = (z[0] + z[1]) + (z[2] + z[3]), sum = product + product * excess;
    SF_UNROLL
    for (int r = 0; r < b; ++r) x[r][c] -= u[r] * sum;
  }
}

template <typename T>
static inline __attribute__((always_inline)) void load_window(const T* window,
                                                              typename Simd<T>::Vector (*x)[Blocks<T>::vectors]) {
  SF_UNROLL
  for (int r = 0; r < Blocks<T>::block; ++r) {
    SF_UNROLL
    for (int c = 0; c < Blocks<T>::vectors; ++c)
      x[r][c] = Simd<T>::load_unaligned(window + r * BandStorage<T>::stride + c * Simd<T>::lanes);
  }
}

template <typename T>
static inline __attribute__((always_inline)) void store_window(T* window,
                                                               const typename Simd<T>::Vector (*x)[Blocks<T>::vectors]) {
  SF_UNROLL
  for (int r = 0; r < Blocks<T>::block; ++r) {
    SF_UNROLL
    for (int c = 0; c < Blocks<T>::vectors; ++c)
      Simd<T>::store_unaligned(window + r * BandStorage<T>::stride + c * Simd<T>::lanes, x[r][c]);
  }
}

// D <- D (I - tau v v^T), and u from its first column. Returns the entry that replaces the column.
template <typename T>
static inline double chase_columns(T* d, const ChaseReflector<T>& right, ChaseReflector<T>& left) {
  typedef Simd<T> S;
  typename S::Vector x[Blocks<T>::block][Blocks<T>::vectors];
  load_window(d, x);
  apply_right(x, right);
  store_window(d, x);
  typename S::Vector column[Blocks<T>::vectors];
  SF_UNROLL
  for (int c = 0; c < Blocks<T>::vectors; ++c)
    column[c] = S::first_column([&](int r) __attribute__((always_inline)) { return x[c * S::lanes + r][0]; });
  return chase_reflector(column, left);
}

// [D E] <- (I - tau u u^T) [D E], v from the first row of E, E <- E (I - tau v v^T).
template <typename T>
static inline void chase_rows(T* d, double beta, const ChaseReflector<T>& left, ChaseReflector<T>& right) {
  typedef Simd<T> S;
  constexpr int b = Blocks<T>::block, vectors = Blocks<T>::vectors;
  typename S::Vector x[b][vectors];
  alignas(64) T u[b];
  SF_UNROLL
  for (int c = 0; c < vectors; ++c) S::store(u + c * S::lanes, left.v[c]);
  load_window(d + b, x);
  apply_left(x, u, left.excess);
  const double beta_right = chase_reflector(x[0], right);
  apply_right(x, right);
  SF_UNROLL
  for (int c = 0; c < vectors; ++c) x[0][c] = typename S::Vector{};
  x[0][0] = S::with_first(x[0][0], static_cast<T>(beta_right));
  store_window(d + b, x);

  load_window(d, x);
  apply_left(x, u, left.excess);
  SF_UNROLL
  for (int r = 0; r < b; ++r) x[r][0] = S::with_first(x[r][0], r == 0 ? static_cast<T>(beta) : T(0));
  store_window(d, x);
}

// Sweeps first .. first + group_sweeps of an n x n band. done[g]: how far group g has come, in ticks; a tick is one step of each
// of its sweeps.
template <typename T>
static void chase_group(T* band, int64_t n, int64_t group, double* d, double* e, int64_t* done) {
  typedef BandStorage<T> Band;
  constexpr int b = Blocks<T>::block;
  constexpr int64_t lag = 2 * (group_sweeps - 1);
  const int64_t first = group * group_sweeps;
  const int64_t steps = (n - 2 - first) / b + 1;  // of the longest sweep
  ChaseReflector<T> right[group_sweeps], left[group_sweeps];

  for (int64_t tick = 0; tick < steps + lag; ++tick) {
    // The last sweep of the group before is through with step tick + 1.
    if (group > 0) wait_until(done + group - 1, tick + 2 + lag);
    double beta[group_sweeps];
    for (int s = 0; s < group_sweeps; ++s) {
      const int64_t i = first + s, p = tick - 2 * s, row = i + 1 + p * b;
      if (p < 0 || row >= n) continue;
      if (p == 0) {
        typename Simd<T>::Vector x[Blocks<T>::vectors];
        for (int c = 0; c < Blocks<T>::vectors; ++c)
          x[c] = Simd<T>::load_unaligned(Band::at(band, i, i + 1) + c * Simd<T>::lanes);
        e[i] = chase_reflector(x, right[s]);
      }
      beta[s] = chase_columns(Band::at(band, row, row), right[s], left[s]);
      if (p == 0) d[row] = beta[s];
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
template <typename T>
static bool bidiagonalize_band(T* band, int64_t n, double* d, double* e, int64_t* done, const Team& team) {
  constexpr int64_t flops_between_polls = 1 << 30;
  const int64_t groups = (n - 1 + group_sweeps - 1) / group_sweeps;
  const int64_t together = 1 + flops_between_polls / (8 * n * Blocks<T>::block * group_sweeps);
  d[0] = *BandStorage<T>::at(band, 0, 0);
  for (int64_t g = 0; g < groups; ++g) done[g] = 0;
  for (int64_t first = 0; first < groups; first += together) {
    const int64_t count = first + together < groups ? together : groups - first;
    parallel_for(team, count, [&](int64_t g) { chase_group(band, n, first + g, d, e, done); });
    if (cancelled(team)) return false;
  }
  return true;
}
