// Stage `values`
static constexpr int interleave = 4;
typedef Simd<double> SimdD;
typedef SimdD::Vector VectorD;
typedef int64_t VectorI __attribute__((vector_size(SF_VECTOR_BYTES)));
static constexpr int64_t shifts = interleave * SimdD::lanes;  // counted together

static constexpr double smallest_pivot = 0x1.0000000000001p-980;

struct Cell {
  double low, high;  // low <= values first .. first + count - 1 < high
  double g_low, h_low, g_high, h_high;
  double outer_low, outer_high;  // no other value in between
  int64_t first, count;
  int64_t slow;
};

struct ValuesWorkspace {
  double *q, *e2, *e2q;  // n
  double *x, *g, *h;     // round_up(n, shifts) points
  int64_t* below;
  double* squares;     // n
  Cell *cells, *next;  // n
};

template <int registers>
static void sturm(const ValuesWorkspace& ws, int64_t n, int64_t first) {
  VectorD mu[registers], s[registers], ds[registers], dds[registers], g[registers], h[registers], largest[registers];
  VectorI count[registers];
  for (int r = 0; r < registers; ++r) {
    mu[r] = SimdD::load(ws.x + first + r * SimdD::lanes);
    s[r] = -mu[r];
    ds[r] = -mu[r];
    dds[r] = g[r] = h[r] = largest[r] = VectorD{};
    count[r] = VectorI{};
  }
  for (int64_t i = 0; i < n; ++i) {
    const double q = ws.q[i], e2 = ws.e2[i], e2q = ws.e2q[i];
    for (int r = 0; r < registers; ++r) {
      const VectorD p = (q + s[r]) + smallest_pivot;
      const VectorD inverse = 1 / p;
      count[r] -= p < 0;  // a true lane is -1
      const VectorD t = e2q * inverse, u = ds[r] * inverse, v = u * u + dds[r] * inverse;
      g[r] += u;
      h[r] += v;
      largest[r] += u * u;
      ds[r] = t * u - mu[r];
      dds[r] = t * (u * u + v);
      s[r] = (s[r] * e2) * inverse - mu[r];
    }
  }
  for (int r = 0; r < registers; ++r) {
    const int64_t at = first + r * SimdD::lanes;
    const VectorI trusted = (mu[r] > 0x1p-501) & (h[r] < 0x1p1000) & (largest[r] < 0x1p26 * h[r]) & (h[r] > 0);
    SimdD::store(ws.g + at, g[r]);
    SimdD::store(ws.h + at, trusted ? h[r] : VectorD{});
    for (int64_t l = 0; l < SimdD::lanes; ++l) ws.below[at + l] = count[r][l];
  }
}

// Distance to a value of multiplicity m on the side where it makes g negative
static inline double reach(double g, double h, double m) {
  const double d = 2 * m * h - g * g;
  const double u = -g + __builtin_sqrt(d > 0 ? d : 0);
  return u > 0 ? 2 * m / u : __builtin_inf();
}

// k points that divide (a, b), 0 < a, into equal numbers of floating-point numbers: geometrically across powers of two.
static inline void spread(double a, double b, int64_t k, double* y) {
  int64_t first, last;
  __builtin_memcpy(&first, &a, sizeof a);
  __builtin_memcpy(&last, &b, sizeof b);
  const double step = static_cast<double>(last - first) / static_cast<double>(k + 1);
  for (int64_t j = 0; j < k; ++j) {
    const int64_t bits = first + static_cast<int64_t>(step * static_cast<double>(j + 1));
    __builtin_memcpy(y + j, &bits, sizeof bits);
  }
}

static void choose_points(const Cell& cell, double tolerance, double floor, double* y) {
  double a = cell.low;
  const double b = cell.high;
  const double m = static_cast<double>(cell.count);
  double chosen[2];
  int64_t k = 0;
  if (!cell.slow) {
    double left = cell.h_low > 0 ? a + a * reach(cell.g_low, cell.h_low, m) : b;
    // Seen from far above, all values below the cell lie at zero.
    const bool wide = b > 16 * a;
    const double zeros = wide ? static_cast<double>(cell.first) : 0;
    double right = cell.h_high > zeros ? b - b * reach(zeros - cell.g_high, cell.h_high - zeros, m) : a;
    if (cell.count == 1) {
      double x = left - a < b - right ? left : right;
      if (!wide && (cell.h_low > 0 || cell.h_high > 0)) {
        x = x > a ? x : a + 0.25 * tolerance * b;
        x = x < b ? x : b - 0.25 * tolerance * b;
      }
      if (x > a && x < b) chosen[k++] = x;
    } else {
      if (left > right) {
        const double t = left;
        left = right;
        right = t;
      }
      const double gap = (right - left) / 16, pad = 0.25 * tolerance * b;
      const double wa = (left - a) / 16, wb = (b - right) / 16;
      left -= (gap < wa ? gap : wa) + pad;
      right += (gap < wb ? gap : wb) + pad;
      if (left > a && left < b) chosen[k++] = left;
      if (right > a && right < b) chosen[k++] = right;
    }
  }
  int64_t size = cell.count - k;
  if (a == 0 && size > 0) {
    a = *y = floor;
    spread(a, b, size - 1, y + 1);
  } else {
    spread(a, b, size, y);
  }
  for (int64_t i = 0; i < k; ++i) {
    int64_t j = size++;
    for (; j > 0 && y[j - 1] > chosen[i]; --j) y[j] = y[j - 1];
    y[j] = chosen[i];
  }
}

#ifdef SF_STATS
static int64_t stat_points, stat_rounds, stat_chunks;
#endif

// d (n), e (n - 1) -> values, descending, times 2^exponent. d and e are not changed.
template <typename T>
static void bidiagonal_values(const ValuesWorkspace& ws, const double* d, const double* e, int64_t n, int exponent, T* values,
                              const Team& team) {
  constexpr double tolerance = sizeof(T) == sizeof(float) ? 0x1p-26 : 0x1p-52;  // of the square
  constexpr double floor_ratio = sizeof(T) == sizeof(float) ? 0x1p-250 : 0x1p-440;

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
    ws.q[i] = di * di < 0x1p-900 ? 0 : di * di;
    ws.e2[i] = right * right;
    ws.e2q[i] = ws.q[i] * ws.e2[i];
  }
  bound *= unit * (1 + 0x1p-50);
  const double floor = bound * bound * floor_ratio * floor_ratio;

  ws.x[0] = 0x1p-500 * bound * bound;
  for (int64_t i = 1; i < n; ++i) {
    const double x = bound * static_cast<double>(i) / static_cast<double>(n - 1);
    ws.x[i] = x * x;
  }
  Cell* cells = ws.cells;
  Cell* next = ws.next;
  cells[0] = {0, bound * bound, 0, 0, 0, 0, 0, bound * bound, 0, n, 0};
  int64_t open = 1, points = n;
  const double others = static_cast<double>(n - 1);
  while (points > 0) {
#ifdef SF_STATS
    stat_points += points;
    ++stat_rounds;
    stat_chunks += round_up(points, shifts) / shifts;
#endif
    const int64_t padded = round_up(points, shifts);
    for (int64_t i = points; i < padded; ++i) ws.x[i] = bound * bound;
    parallel_for(team, padded / shifts, [&](int64_t piece) { sturm<interleave>(ws, n, piece * shifts); });
    int64_t emitted = 0, at = 0;
    for (int64_t i = 0; i < open; ++i) {
      const Cell& cell = cells[i];
      double low = cell.low, g_low = cell.g_low, h_low = cell.h_low, outer = cell.outer_low;
      int64_t below = cell.first;
      const int64_t end = cell.first + cell.count, last = at + cell.count;
      Cell* latest = nullptr;
      for (;; ++at) {
        const bool inner = at < last;
        const double x = inner ? ws.x[at] : cell.high, g = inner ? ws.g[at] : cell.g_high, h = inner ? ws.h[at] : cell.h_high;
        int64_t b = inner ? ws.below[at] : end;
        b = b < below ? below : b > end ? end : b;
        if (b > below) {
          latest = next + emitted++;
          // Slow: neither the bracket halves nor an end closes in on a value.
          const bool halved = cell.high > 16 * cell.low ? x / low <= __builtin_sqrt(cell.high / cell.low)
                                                        : x - low <= 0.5 * (cell.high - cell.low);
          const bool slow =
              !cell.slow && b - below == cell.count && !halved && !(h_low > 16 * cell.h_low) && !(h > 16 * cell.h_high);
          *latest = {low, x, g_low, h_low, g, h, outer, x, below, b - below, slow};
          outer = x;
          below = b;
        } else if (latest) {
          latest->outer_high = x;
        }
        if (!inner) {
          if (latest->high == x || latest->outer_high == x) latest->outer_high = cell.outer_high;
          break;
        }
        low = x;
        g_low = g;
        h_low = h;
      }
    }
    open = points = 0;
    for (int64_t i = 0; i < emitted; ++i) {
      const Cell cell = next[i];
      double value = -1;
      if (cell.high <= floor) {
        value = 0;
      } else if (!(cell.high - cell.low > tolerance * cell.high)) {
        value = 0.5 * (cell.low + cell.high);
      } else if (cell.count == 1) {
        const bool from_low = cell.h_low > cell.h_high;
        const double x = from_low ? cell.low : cell.high, h = from_low ? cell.h_low : cell.h_high;
        const double left = 1 - cell.outer_low / x, right = cell.outer_high / x - 1;
        const double distance = left < right ? left : right;
        const double t = distance * distance * h;
        if (t > 2 * others && 0.75 * others * 0.75 * others < (0.25 * tolerance * t) * (0.25 * tolerance * t) * h) {
          value = x + (from_low ? x : -x) / __builtin_sqrt(h);
          value = value < cell.low ? cell.low : value > cell.high ? cell.high : value;
        }
      }
      if (value >= 0) {
        for (int64_t k = 0; k < cell.count; ++k) ws.squares[cell.first + k] = value;
      } else {
        choose_points(cell, tolerance, floor, ws.x + points);
        points += cell.count;
        next[open++] = cell;
      }
    }
    Cell* const t = cells;
    cells = next;
    next = t;
  }
  for (int64_t i = 0; i < n; ++i)
    values[n - 1 - i] = static_cast<T>(__builtin_ldexp(__builtin_sqrt(ws.squares[i]), exponent + bound_exponent));
}
