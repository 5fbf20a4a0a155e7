// Stage `values`: singular values of an upper bidiagonal B (diagonal d, superdiagonal e) by bisection on Sturm counts.
//
// The number of singular values below x is the number of negative pivots of B^T B - x^2 I = L D L^T. In the differential form
// of Fernando and Parlett (1994), with q_i = d_i^2, e_i^2 and mu = x^2,
//
//   s_1 = -mu,   p_i = q_i + s_i,   s_{i+1} = s_i e_i^2 / p_i - mu,   count = #{ p_i < 0 },
//
// each count is exact for a bidiagonal whose entries differ from B's by a few units in the last place, so small values come out
// with high relative accuracy. A count is a chain of divisions, but the counts at different x are independent: they run side by
// side in the lanes of a register, `interleave` registers at a time, which hides the latency of the division.
//
//   1. count at a uniform grid of about n points: every value gets its first log2(n) bits for the cost of one bisection step.
//   2. bisect each bracket, geometrically while it spans orders of magnitude, until it is narrower than `tolerance` relative.
//
// About 20 (float32) or 45 (float64) steps of n^2 divisions. A value below `floor_ratio` of the upper bound is returned as zero.

static constexpr int interleave = 4;

typedef SimdD::Vector VectorD;
typedef int64_t VectorI __attribute__((vector_size(SF_VECTOR_BYTES)));
static constexpr int64_t shifts = interleave * SimdD::lanes;  // counted together

// Below every pivot that matters (B is scaled to norm about one), and such that s e^2 / p cannot overflow.
static constexpr double smallest_pivot = 0x1p-980;

// below[l] = number of singular values < x[l], l < shifts.
static void sturm_counts(const double* q, const double* e2, int64_t n, const double* x, int64_t* below) {
  VectorD mu[interleave], s[interleave];
  VectorI count[interleave];
  for (int r = 0; r < interleave; ++r) {
    for (int64_t l = 0; l < SimdD::lanes; ++l) mu[r][l] = x[r * SimdD::lanes + l] * x[r * SimdD::lanes + l];
    s[r] = -mu[r];
    count[r] = VectorI{};
  }
  for (int64_t i = 0; i < n; ++i) {
    // e2[n-1] is zero: the last division is wasted, not special.
    for (int r = 0; r < interleave; ++r) {
      VectorD p = q[i] + s[r];
      const VectorI tiny = (p < smallest_pivot) & (p > -smallest_pivot);
      p = tiny ? SimdD::broadcast(-smallest_pivot) : p;
      count[r] -= p < 0;  // a true lane is -1
      s[r] = s[r] * (e2[i] / p) - mu[r];
    }
  }
  for (int r = 0; r < interleave; ++r)
    for (int64_t l = 0; l < SimdD::lanes; ++l) below[r * SimdD::lanes + l] = count[r][l];
}

struct ValuesWorkspace {
  double *q, *e2, *low, *high;  // n each
};

// d (n), e (n - 1) -> values, descending, times 2^exponent. d and e are not changed.
template <typename T>
static void bidiagonal_values(const ValuesWorkspace& ws, const double* d, const double* e, int64_t n, int exponent, T* values) {
  // Half a unit of the output is lost in rounding anyway; the bracket adds an eighth of one to float32, and closes to
  // neighbouring numbers in double.
  constexpr double tolerance = sizeof(T) == sizeof(float) ? 0x1p-27 : 0x1p-53;
  constexpr double floor_ratio = sizeof(T) == sizeof(float) ? 0x1p-250 : 0x1p-480;

  // |B|_2 <= sqrt(|B|_1 |B|_inf), the norms being sums of two neighbours.
  double row_norm = 0, col_norm = 0;
  for (int64_t i = 0; i < n; ++i) {
    const double di = __builtin_fabs(d[i]);
    const double right = i + 1 < n ? __builtin_fabs(e[i]) : 0, above = i > 0 ? __builtin_fabs(e[i - 1]) : 0;
    row_norm = di + right > row_norm ? di + right : row_norm;
    col_norm = di + above > col_norm ? di + above : col_norm;
  }
  double bound = __builtin_sqrt(row_norm) * __builtin_sqrt(col_norm);
  if (bound == 0 || n == 1) {
    for (int64_t i = 0; i < n; ++i) values[i] = static_cast<T>(__builtin_ldexp(__builtin_fabs(d[i]), exponent));
    return;
  }
  const int bound_exponent = __builtin_ilogb(bound);
  const double unit = __builtin_ldexp(1.0, -bound_exponent);
  for (int64_t i = 0; i < n; ++i) {
    const double di = unit * d[i], right = i + 1 < n ? unit * e[i] : 0;
    ws.q[i] = di * di;
    ws.e2[i] = right * right;
  }
  bound *= unit * (1 + 0x1p-50);
  const double floor = bound * floor_ratio;

  // low[i] <= i-th smallest value <= high[i]
  for (int64_t i = 0; i < n; ++i) {
    ws.low[i] = 0;
    ws.high[i] = bound;
  }
  double x[shifts];
  int64_t below[shifts];
  const int64_t grid = round_up(n, shifts);
  int64_t assigned = 0;  // values known to lie below the last grid point
  for (int64_t g = 0; g < grid; g += shifts) {
    for (int64_t l = 0; l < shifts; ++l) x[l] = bound * static_cast<double>(g + l + 1) / static_cast<double>(grid + 1);
    sturm_counts(ws.q, ws.e2, n, x, below);
    for (int64_t l = 0; l < shifts; ++l) {
      for (; assigned < below[l]; ++assigned) ws.high[assigned] = x[l];
      if (assigned < n) ws.low[assigned] = x[l];
    }
  }
  for (int64_t i = 1; i < n; ++i) ws.low[i] = ws.low[i] > ws.low[i - 1] ? ws.low[i] : ws.low[i - 1];

  for (int64_t first = 0; first < n; first += shifts) {
    const int64_t count = n - first < shifts ? n - first : shifts;
    for (int64_t l = count; l < shifts; ++l) x[l] = bound;  // idle lanes
    for (;;) {
      bool open = false;
      for (int64_t l = 0; l < count; ++l) {
        const double low = ws.low[first + l], high = ws.high[first + l];
        double middle = 0.5 * (low + high);
        if (low == 0) {
          // Look for the order of magnitude first; below the floor the value counts as zero.
          middle = high > 4 * floor ? __builtin_sqrt(high * floor) : floor;
        } else if (high > 4 * low) {
          middle = __builtin_sqrt(high) * __builtin_sqrt(low);
        }
        x[l] = middle;
        open |= high > floor && high - low > tolerance * high && middle > low && middle < high;
      }
      if (!open) break;
      sturm_counts(ws.q, ws.e2, n, x, below);
      for (int64_t l = 0; l < count; ++l) {
        if (below[l] > first + l)
          ws.high[first + l] = x[l];
        else
          ws.low[first + l] = x[l];
      }
    }
  }
  for (int64_t i = 0; i < n; ++i) {
    const double value = ws.high[i] <= floor ? 0 : 0.5 * (ws.low[i] + ws.high[i]);
    values[n - 1 - i] = static_cast<T>(__builtin_ldexp(value, exponent + bound_exponent));
  }
  // Brackets of equal values may end a unit apart in the wrong order.
  for (int64_t i = 1; i < n; ++i) values[i] = values[i] < values[i - 1] ? values[i] : values[i - 1];
}
