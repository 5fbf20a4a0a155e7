// Stage `values`: singular values of an upper bidiagonal B (diagonal d, superdiagonal e) from Sturm counts and their derivatives.
//
// The number of singular values below x is the number of negative pivots of B^T B - mu I = L D L^T, mu = x^2. In the
// differential form of Fernando and Parlett (1994), with q_i = d_i^2,
//
//   s_1 = -mu,   p_i = q_i + s_i,   r_i = 1 / p_i,   s_{i+1} = s_i e_i^2 r_i - mu,   count = #{ p_i < 0 },
//
// each count is exact for a bidiagonal whose entries differ from B's by a few units in the last place, so small values come out
// with high relative accuracy. Differentiated, with s' = mu ds/dmu and s'' = mu^2 d^2s/dmu^2, the same recurrence gives, without
// another division,
//
//   u_i = s_i' r_i,   v_i = u_i^2 - s_i'' r_i,   s_{i+1}' = q_i e_i^2 r_i u_i - mu,   s_{i+1}'' = -q_i e_i^2 r_i (v_i + u_i^2),
//   g = sum u_i = sum_j mu / (mu - lambda_j),    h = sum v_i = sum_j (mu / (mu - lambda_j))^2,      lambda_j = sigma_j^2.
//
// From a point mu, m values at one place above it and m at one place below it lie at the relative distances
//
//   2 m / (-+ g + sqrt(2 m h - g^2)),
//
// which is Laguerre's step for a polynomial of degree 2 m (Hansen and Patrick 1977; Li and Zeng 1994): it converges cubically to
// a value (m = 1) or to a tight cluster of m from outside, and the nearest value on the other side does not disturb it.
//
// The squares lie in cells, intervals (low, high] whose ends have been counted. In each round a cell of c values is divided at c
// points: a single value at Laguerre's step from the end nearer to it; several at the steps from both ends, taken as one cluster
// (for two separate values this falls between them), and at c - 2 points evenly spread, which narrows the cell c - 1 times
// whatever the steps do. Where a round neither halved a cell nor came closer to a value, all points of the next are spread. The
// points of all cells are counted together, in the lanes of registers and by the threads of a team; the first round has a grid.
//
// When is a single value found? All others lie outside the interval (outer_low, outer_high) that the counts isolate it in. With D
// the distance of mu to the nearer of the two, kappa = (n - 1) mu^2 / (D^2 h) bounds their share of h, hence
//
//   mu / sqrt(h) <= |mu - lambda| <= mu / sqrt(h (1 - kappa)),
//
// and the count tells the side. The difference is below 3/4 kappa mu / sqrt(h) if kappa <= 1/2. So what is returned is certified
// by counts at other points, and the last, cubically convergent step costs no count. Cells that hold several values close in on
// them by counts alone.
//
// Recurrences of n divisions for each value, n = 32 .. 2048: 3.6 (float32), 4.2 (float64) for Gaussian matrices, 5 and 5.5 for
// power laws; bisection takes 20 and 45. Graded, repeated and clustered values take up to 15.

static constexpr int interleave = 4;  // AMD Zen 5, AVX-512, n = 1024: 8 cost 4 % more, 3 12 %, 2 50 %

typedef int64_t VectorI __attribute__((vector_size(SF_VECTOR_BYTES)));
static constexpr int64_t shifts = interleave * SimdD::lanes;  // counted together

// Added to every pivot. Larger ones do not change; zero becomes a number whose inverse times s e^2 does not overflow (B is
// scaled to norm about one). No q_i + s_i cancels it: both are multiples of 2^-1000, mu and q being no smaller than 2^-900.
static constexpr double smallest_pivot = 0x1.0000000000001p-980;

// g and h at a point, and the relative distance of the single value that they predict above it (up) and below it (down).
struct Derivatives {
  double g, h, up, down;  // h is zero where rounding has spoilt them
};

struct Cell {
  double low, high;
  double outer_low, outer_high;  // no value in (outer_low, low) or (high, outer_high)
  Derivatives at_low, at_high;
  int64_t first, count;  // values, ascending
  bool spread;           // the next points
};

struct ValuesWorkspace {
  double *q, *e2, *qe2, *squares;  // n
  double* x;                       // round_up(n, shifts) points
  int64_t* below;                  // values below them
  Derivatives* at;
  Cell *cells, *next;  // n

  ValuesWorkspace(Arena& arena, int64_t n) {
    double** const diagonals[] = {&q, &e2, &qe2, &squares};
    for (double** diagonal : diagonals) *diagonal = arena.take<double>(n);
    x = arena.take<double>(round_up(n, shifts));
    below = arena.take<int64_t>(round_up(n, shifts));
    at = arena.take<Derivatives>(round_up(n, shifts));
    cells = arena.take<Cell>(n);
    next = arena.take<Cell>(n);
  }
};

// Counts and derivatives at `shifts` points from x[first] on.
static void sturm(const ValuesWorkspace& ws, int64_t n, int64_t first) {
  // dds is -s''. squares, the sum of u^2, is what h may have cancelled from.
  VectorD mu[interleave], s[interleave], ds[interleave], dds[interleave], g[interleave], h[interleave], squares[interleave];
  VectorI count[interleave];
  for (int r = 0; r < interleave; ++r) {
    mu[r] = SimdD::load(ws.x + first + r * SimdD::lanes);
    s[r] = ds[r] = -mu[r];
    dds[r] = g[r] = h[r] = squares[r] = VectorD{};
    count[r] = VectorI{};
  }
  for (int64_t i = 0; i < n; ++i) {
    // e2[n-1] is zero: the last division is wasted, not special.
    const double q = ws.q[i], e2 = ws.e2[i], qe2 = ws.qe2[i];
    for (int r = 0; r < interleave; ++r) {
      const VectorD p = q + s[r] + smallest_pivot;
      const VectorD inverse = 1 / p;
      count[r] -= p < 0;  // a true lane is -1
      const VectorD t = qe2 * inverse, u = ds[r] * inverse, v = u * u + dds[r] * inverse;
      g[r] += u;
      h[r] += v;
      squares[r] += u * u;
      ds[r] = t * u - mu[r];
      dds[r] = t * (v + u * u);
      s[r] = s[r] * e2 * inverse - mu[r];
    }
  }
  alignas(workspace_alignment) double g_at[shifts], h_at[shifts], up[shifts], down[shifts];
  for (int r = 0; r < interleave; ++r) {
    // 2^26 leaves h 27 bits, and a distance an error of 2^-27 of it.
    const VectorI good = (h[r] < 0x1p1000) & (squares[r] < 0x1p26 * h[r]);
    SimdD::store(g_at + r * SimdD::lanes, good ? g[r] : VectorD{});
    SimdD::store(h_at + r * SimdD::lanes, good ? h[r] : VectorD{});
    for (int64_t l = 0; l < SimdD::lanes; ++l) ws.below[first + r * SimdD::lanes + l] = count[r][l];
  }
  for (int64_t l = 0; l < shifts; ++l) {
    const double discriminant = 2 * h_at[l] - g_at[l] * g_at[l];
    const double root = __builtin_sqrt(discriminant > 0 ? discriminant : 0);
    up[l] = root > g_at[l] ? 2 / (root - g_at[l]) : __builtin_inf();
    down[l] = root > -g_at[l] ? 2 / (root + g_at[l]) : __builtin_inf();
  }
  for (int64_t l = 0; l < shifts; ++l) ws.at[first + l] = {g_at[l], h_at[l], up[l], down[l]};
}

// Relative distance of m values at one place, on the side where they make g negative.
static double laguerre_step(double g, double h, double m) {
  const double discriminant = 2 * m * h - g * g;
  const double u = __builtin_sqrt(discriminant > 0 ? discriminant : 0) - g;
  return h > 0 && u > 0 ? 2 * m / u : __builtin_inf();
}

// count points that divide (a, b), 0 < a, into equal numbers of floating-point numbers: geometrically, where it spans orders of
// magnitude.
static void spread(double a, double b, int64_t count, double* points) {
  int64_t first, last;
  __builtin_memcpy(&first, &a, sizeof a);
  __builtin_memcpy(&last, &b, sizeof b);
  const double step = static_cast<double>(last - first) / static_cast<double>(count + 1);
  for (int64_t j = 0; j < count; ++j) {
    const int64_t bits = first + static_cast<int64_t>(step * static_cast<double>(j + 1));
    __builtin_memcpy(points + j, &bits, sizeof bits);
  }
}

static inline bool wide(double low, double high) { return high > 16 * low; }

// Writes cell.count points, ascending, in (low, high).
static void divide(const Cell& cell, double tolerance, double* points) {
  const double a = cell.low, b = cell.high, pad = b * (tolerance > 0x1p-50 ? 0.25 * tolerance : 0x1p-52);
  double steps[2];
  int64_t used = 0;
  if (!cell.spread) {
    double up = cell.at_low.up, down = cell.at_high.down;
    if (cell.count > 1 || wide(a, b)) {
      const double m = static_cast<double>(cell.count);
      // From the upper end of a wide cell all values below it are at zero, a relative distance of one.
      const double zeros = wide(a, b) ? static_cast<double>(cell.first) : 0;
      up = laguerre_step(cell.at_low.g, cell.at_low.h, m);
      down = laguerre_step(zeros - cell.at_high.g, cell.at_high.h - zeros, m);
    }
    const double from_low = a + a * up, from_high = b - b * down;
    if (cell.count == 1) {
      double x = from_low - a < b - from_high ? from_low : from_high;
      if (!wide(a, b) && cell.at_low.h + cell.at_high.h > 0) {
        // A step that meets the other end: the value is there, if the step is right.
        x = x > a ? x : a + pad;
        x = x < b ? x : b - pad;
      }
      if (x > a && x < b) steps[used++] = x;
    } else {
      // Both steps fall short of a tight cluster. A little shorter still, one count on either side confirms it.
      double left = from_low < from_high ? from_low : from_high, right = from_low < from_high ? from_high : from_low;
      const double gap = (right - left) / 16, left_step = (left - a) / 16, right_step = (b - right) / 16;
      left -= (gap < left_step ? gap : left_step) + pad;
      right += (gap < right_step ? gap : right_step) + pad;
      if (left > a && left < b) steps[used++] = left;
      if (right > a && right < b) steps[used++] = right;
    }
  }
  int64_t size = cell.count - used;
  spread(a, b, size, points);
  for (int64_t i = 0; i < used; ++i) {
    int64_t j = size++;
    for (; j > 0 && points[j - 1] > steps[i]; --j) points[j] = points[j - 1];
    points[j] = steps[i];
  }
}

// Cuts a cell at its points x, with their counts, and writes the parts that hold values. Returns their number.
static int64_t cut(const Cell& cell, const double* x, const int64_t* below, const Derivatives* at, Cell* parts) {
  int64_t size = 0, first = cell.first;
  const int64_t end = cell.first + cell.count;
  double low = cell.low, outer = cell.outer_low;
  const Derivatives* at_low = &cell.at_low;
  for (int64_t j = 0; j <= cell.count; ++j) {
    const bool inner = j < cell.count;
    const double high = inner ? x[j] : cell.high;
    const Derivatives* const at_high = inner ? at + j : &cell.at_high;
    // Counts may be out of order by rounding.
    int64_t next = inner ? below[j] : end;
    next = next < first ? first : next > end ? end : next;
    if (next > first) {
      const bool halved = wide(cell.low, cell.high) ? high / low <= __builtin_sqrt(cell.high / cell.low)
                                                    : high - low <= 0.5 * (cell.high - cell.low);
      const bool closer = at_low->h > 16 * cell.at_low.h || at_high->h > 16 * cell.at_high.h;
      const bool stuck = next - first == cell.count && !halved && !closer;
      parts[size++] = {low, high, outer, high, *at_low, *at_high, first, next - first, stuck && !cell.spread};
      outer = high;
      first = next;
    } else if (size > 0) {
      parts[size - 1].outer_high = high;
    }
    low = high;
    at_low = at_high;
  }
  if (parts[size - 1].outer_high == cell.high) parts[size - 1].outer_high = cell.outer_high;
  return size;
}

// Whether the values of a cell are known to a relative error of tolerance / 2, and what they are.
static bool found(const Cell& cell, double tolerance, double others, double floor, double* value) {
  if (cell.high <= floor) {
    *value = 0;
    return true;
  }
  if (!(cell.high - cell.low > tolerance * cell.high)) {
    *value = 0.5 * (cell.low + cell.high);
    return true;
  }
  if (cell.count > 1) return false;
  const bool from_low = cell.at_low.h > cell.at_high.h;
  const double x = from_low ? cell.low : cell.high, h = from_low ? cell.at_low.h : cell.at_high.h;
  const double left = x - cell.outer_low, right = cell.outer_high - x;
  const double distance = (left < right ? left : right) / x;
  const double kappa = others / (distance * distance * h), error = 0.75 * kappa + 0x1p-27;
  if (!(kappa < 0.5 && error * error < 0.25 * tolerance * 0.25 * tolerance * h)) return false;
  const double y = x + (from_low ? x : -x) / __builtin_sqrt(h);
  *value = y < cell.low ? cell.low : y > cell.high ? cell.high : y;
  return true;
}

// d (n), e (n - 1) -> values, descending, times 2^exponent. d and e are not changed. Returns the number of points counted.
template <typename T>
static int64_t bidiagonal_values(const ValuesWorkspace& ws, const double* d, const double* e, int64_t n, int exponent, T* values,
                                 const Team& team) {
  // Of a square, twice that of a value. Half a unit of the output is lost in rounding anyway; this adds an eighth of one to
  // float32, and is the distance of neighbouring numbers in double.
  constexpr double tolerance = sizeof(T) == sizeof(float) ? 0x1p-26 : 0x1p-52;
  // A value below this part of the bound is returned as zero: s e^2 and q e^2, where they matter, are mu^2 at the least, and must
  // not be subnormal.
  constexpr double floor_ratio = 0x1p-240;

  // |B|_2 <= sqrt(|B|_1 |B|_inf), the norms being sums of two neighbours.
  double row_norm = 0, col_norm = 0;
  for (int64_t i = 0; i < n; ++i) {
    const double di = __builtin_fabs(d[i]);
    const double right = i + 1 < n ? __builtin_fabs(e[i]) : 0, above = i > 0 ? __builtin_fabs(e[i - 1]) : 0;
    row_norm = di + right > row_norm ? di + right : row_norm;
    col_norm = di + above > col_norm ? di + above : col_norm;
  }
  const double norm = __builtin_sqrt(row_norm) * __builtin_sqrt(col_norm);
  if (norm == 0 || n == 1) {
    for (int64_t i = 0; i < n; ++i) values[i] = static_cast<T>(__builtin_ldexp(__builtin_fabs(d[i]), exponent));
    return 0;
  }
  const int norm_exponent = __builtin_ilogb(norm);
  const double unit = __builtin_ldexp(1.0, -norm_exponent);
  for (int64_t i = 0; i < n; ++i) {
    const double di = unit * d[i], right = i + 1 < n ? unit * e[i] : 0;
    ws.q[i] = di * di < 0x1p-900 ? 0 : di * di;
    ws.e2[i] = right * right;
    ws.qe2[i] = ws.q[i] * ws.e2[i];
  }
  const double bound = unit * norm * (1 + 0x1p-50);
  const double top = bound * bound, floor = top * floor_ratio * floor_ratio;

  // The first round: one cell, whose points are even in sigma.
  Cell *cells = ws.cells, *next = ws.next;
  cells[0] = {0, top, 0, top, {}, {}, 0, n, false};
  ws.x[0] = floor;
  for (int64_t i = 1; i < n; ++i) {
    const double x = bound * static_cast<double>(i) / static_cast<double>(n - 1);
    ws.x[i] = x * x;
  }
  int64_t open = 1, points = n, counted = 0;
  while (points > 0) {
    counted += points;
    const int64_t padded = round_up(points, shifts);
    for (int64_t i = points; i < padded; ++i) ws.x[i] = top;
    parallel_for(team, padded / shifts, [&](int64_t piece) { sturm(ws, n, piece * shifts); });
    int64_t cut_at = 0, parts = 0;
    for (int64_t i = 0; i < open; ++i) {
      parts += cut(cells[i], ws.x + cut_at, ws.below + cut_at, ws.at + cut_at, next + parts);
      cut_at += cells[i].count;
    }
    open = points = 0;
    for (int64_t i = 0; i < parts; ++i) {
      double value;
      if (found(next[i], tolerance, static_cast<double>(n - 1), floor, &value)) {
        for (int64_t k = 0; k < next[i].count; ++k) ws.squares[next[i].first + k] = value;
      } else {
        divide(next[i], tolerance, ws.x + points);
        points += next[i].count;
        if (open != i) next[open] = next[i];
        ++open;
      }
    }
    Cell* const old = cells;
    cells = next;
    next = old;
  }
  // Twice: each factor alone is in range, and only the second product may be subnormal.
  const int shift = exponent + norm_exponent;
  const double scale = __builtin_ldexp(1.0, shift / 2), rest = __builtin_ldexp(1.0, shift - shift / 2);
  for (int64_t i = 0; i < n; ++i) values[n - 1 - i] = static_cast<T>(__builtin_sqrt(ws.squares[i]) * scale * rest);
  return counted;
}
