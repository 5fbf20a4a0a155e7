// Stage `reduce` of driver "gram": tall m x n -> n x n upper triangle R, always in double, from the Gram matrix (CholeskyQR;
// Stathopoulos and Wu 2002), shifted so that it cannot fail (Fukaya, Kannan, Nakatsukasa, Yamamoto, Yanagisawa 2020):
//
//   G = A^T A,   R^T R = G + s I,   sigma_i(A) = sqrt(sigma_i(R)^2 - s)
//
// m n^2 flops for the upper triangle of G and n^3 / 3 for its factor, half of what the reflectors of reduce.inl take.
//
// Both are sums over rows, of A and of R above, and are made by one kernel on strips:  C <- C +- P^T Q,  a tile of C in
// registers while gram_rows rows of P and Q pass by. The factor is computed a row of blocks at a time, each of one strip's
// height.
//
// error      u = eps / 2. A sum of gram_rows rows is rounded once a row, G once more for each sum; together with the factor's
//            backward error (Higham 2002, theorem 10.3) sigma_i^2 errs by at most
//              (n + gram_rows + m / gram_rows + 8) u |A|_F^2,
//            and in practice by some u sigma_1^2: sigma_i by n eps sigma_1^2 / sigma_i at worst, and what is below
//            sqrt(n eps) sigma_1 may be anything below it. So no other driver takes this path.
// shift      s is twice that bound, which makes every pivot positive (theorem 10.7) whatever the rank. It is taken off again at
//            the end, so it adds no error of its own order: sigma_i(R)^2 near s errs by eps sqrt(s) sigma_1 only.

static constexpr int64_t gram_rows = 128;  // of a strip, 24 KiB: half the first level cache

struct GramWorkspace {
  Strips<double> a;  // gram_rows x n, zero in the rest of the last strip
  double* shift;
};

// C is fetched while the rows pass by: from n = 1536 on it lies in the third level cache or beyond, where it costs a quarter of
// the time (AMD Zen 5, AVX-512, 2048: 65 % of the register rate, 90 with it).
//
// lanes rows of C, adjacent columns of P, and one strip of Q; P, Q and C have a strip's row stride.
template <bool subtract>
static inline __attribute__((always_inline)) void gram_tile(double* c, const double* p, const double* q, int64_t depth) {
  constexpr int ld = Blocks<double>::strip_columns, vectors = Blocks<double>::strip_vectors, rows = SimdD::lanes;
  constexpr int line = 64 / sizeof(double);
  for (int i = 0; i < rows * ld; i += line) __builtin_prefetch(c + i, 1);
  VectorD sum[rows][vectors] = {};
  for (int64_t k = 0; k < depth; ++k) {
    VectorD row[vectors];
    SF_UNROLL
    for (int v = 0; v < vectors; ++v) row[v] = SimdD::load(q + k * ld + v * SimdD::lanes);
    SF_UNROLL
    for (int r = 0; r < rows; ++r) {
      SF_UNROLL
      for (int v = 0; v < vectors; ++v) sum[r][v] += p[k * ld + r] * row[v];
    }
  }
  SF_UNROLL
  for (int r = 0; r < rows; ++r) {
    SF_UNROLL
    for (int v = 0; v < vectors; ++v) {
      double* const to = c + r * ld + v * SimdD::lanes;
      SimdD::store(to, subtract ? SimdD::load(to) - sum[r][v] : SimdD::load(to) + sum[r][v]);
    }
  }
}

// Strip s of the rows of C that belong to strip t: +- the product of these strips of A, rows first .. first + depth of it.
template <bool subtract>
static void gram_block(const Strips<double>& c, const Strips<double>& a, int64_t first, int64_t depth, int64_t t, int64_t s) {
  constexpr int ld = Blocks<double>::strip_columns;
  const int64_t rows = c.rows - t * ld < ld ? c.rows - t * ld : ld;  // a multiple of lanes, as Blocks::block is
  for (int64_t i = 0; i < rows; i += SimdD::lanes)
    gram_tile<subtract>(c.strip(s) + (t * ld + i) * ld, a.strip(t) + first * ld + i, a.strip(s) + first * ld, depth);
}

// G += A^T A for the first `rows` rows of ws.a; where `start`, G is zeroed before, below its diagonal too.
static void gram_fold(const Strips<double>& g, const Strips<double>& a, int64_t rows, bool start, const Team& team) {
  constexpr int ld = Blocks<double>::strip_columns;
  const int64_t strips = Strips<double>::count(g.rows);
  parallel_for(team, strips, [&](int64_t piece) {
    const int64_t s = strips - 1 - piece;  // the longest first
    if (start)
      for (double* p = g.strip(s); p < g.strip(s) + g.rows * ld; ++p) *p = 0;
    for (int64_t t = 0; t <= s; ++t) gram_block<false>(g, a, 0, rows, t, s);
  });
}

// G <- G + s I. Returns s.
static double gram_shift(const Strips<double>& g, int64_t m, int64_t n) {
  double trace = 0;
  for (int64_t i = 0; i < n; ++i) trace += *g.at(i, i);
  const double roundings = static_cast<double>(n + gram_rows + m / gram_rows + 8);
  const double shift = roundings * 0x1p-52 * trace;
  for (int64_t i = 0; i < n; ++i) *g.at(i, i) += shift;
  return shift;
}

// The diagonal block of strip s, of which the rows above have been taken off. Row and column n and beyond are zero and stay so.
static void factor_diagonal(const Strips<double>& g, int64_t n, int64_t s) {
  constexpr int ld = Blocks<double>::strip_columns;
  double* const r = g.at(s * ld, s * ld);
  const int64_t rows = n - s * ld < ld ? n - s * ld : ld, stored = g.rows - s * ld < ld ? g.rows - s * ld : ld;
  for (int64_t i = 0; i < rows; ++i) {
    const double pivot = __builtin_sqrt(r[i * ld + i]), inverse = 1 / pivot;
    r[i * ld + i] = pivot;
    for (int64_t j = i + 1; j < ld; ++j) r[i * ld + j] *= inverse;
    for (int64_t l = i + 1; l < rows; ++l)
      for (int64_t j = l; j < ld; ++j) r[l * ld + j] -= r[i * ld + l] * r[i * ld + j];
  }
  for (int64_t i = 1; i < stored; ++i)
    for (int64_t j = 0; j < i; ++j) r[i * ld + j] = 0;
}

// Strip s of the rows that belong to strip t: R_tt^-T (G - R_above^T R_above), or without R_tt^-T where s = t.
static void solve_block(const Strips<double>& g, int64_t t, int64_t s) {
  constexpr int ld = Blocks<double>::strip_columns, vectors = Blocks<double>::strip_vectors;
  for (int64_t first = 0; first < t * ld; first += gram_rows)
    gram_block<true>(g, g, first, t * ld - first < gram_rows ? t * ld - first : gram_rows, t, s);
  if (s == t) return;
  const double* const r = g.at(t * ld, t * ld);
  double* const x = g.at(t * ld, s * ld);
  for (int i = 0; i < ld; ++i) {
    const double inverse = 1 / r[i * ld + i];
    VectorD row[vectors];
    SF_UNROLL
    for (int v = 0; v < vectors; ++v) {
      row[v] = inverse * SimdD::load(x + i * ld + v * SimdD::lanes);
      SimdD::store(x + i * ld + v * SimdD::lanes, row[v]);
    }
    for (int l = i + 1; l < ld; ++l) {
      double* const to = x + l * ld;
      SF_UNROLL
      for (int v = 0; v < vectors; ++v)
        SimdD::store(to + v * SimdD::lanes, SimdD::load(to + v * SimdD::lanes) - r[i * ld + l] * row[v]);
    }
  }
}

// G -> R in place, zero below the diagonal. False if cancelled.
//
// The first piece of a row of blocks goes on to the next diagonal block, which needs no strip but its own.
static bool cholesky(const Strips<double>& g, int64_t n, const Team& team) {
  const int64_t strips = Strips<double>::count(n);  // a strip of padding alone is zero already
  factor_diagonal(g, n, 0);
  for (int64_t t = 0; t + 1 < strips; ++t) {
    parallel_for(team, strips - t - 1, [&](int64_t piece) {
      const int64_t s = t + 1 + piece;
      solve_block(g, t, s);
      if (piece > 0) return;
      solve_block(g, s, s);
      factor_diagonal(g, n, s);
    });
    if (cancelled(team)) return false;
  }
  return true;
}
