// The power law of Clauset, Shalizi and Newman (SIAM Review 51, 2009, continuous case): values -> alpha, xmin, D.
//
// x_0 <= ... <= x_{N-1} are the positive values. A candidate i takes the m = N - i values from x_i on as the tail. Its exponent:
//
//   alpha_i = 1 + s_i,   s_i = m / E_i,   E_i = sum_{j >= i} ln(x_j / x_i) = sum_{k > i} (N - k) g_k,   g_k = ln(x_k / x_{k-1}),
//
// a sum of positive terms, so that nothing cancels. With T_j = ln(x_{N-1} / x_j) = sum_{k > j} g_k its distance is
//
//   D_i = max_{j >= i} |A_ij|,   A_ij = 1 - e^{-s_i (T_i - T_j)} - (j - i) / m,
//
// one-sided as in powerlaw and WeightWatcher. Every i but the largest value is a candidate; of equal values the first stands for
// all. The least D wins, the smallest i in a tie.
//
// All D_i are n^2 / 2 exponentials. But any single |A_ij| is a lower bound of D_i, so that most candidates need only a few:
//
//   1. Every candidate gets as bound the largest |A_ij| of 4 places j spread over its tail.
//   2. The candidate with the least bound is computed in full. Its D may be the least so far. The place j of its maximum is
//      likely to be a bad one for its neighbours too, so |A_ij| there, and at the same share of the tail, raises the bound of
//      every candidate that is still alive.
//   3. Candidates whose bound exceeds the least D so far are dead, for good. When none is left, the least D is that of the full
//      scan: best first branch and bound. A bound is one of the terms of its own D but for products and sums that the compiler
//      may contract in one place and not in the other. Of one t either result is right to 3 eps (2 of them the exponential's),
//      so a bound exceeds its D by 6 eps at most; `margin` is 8.
//
// cost       n logarithms, 4 n exponentials, and for each candidate computed in full m + 2 (those alive). Seen for n from 256 to
//            5000: 1 to 11 candidates, Pareto samples included, and 17 where ln x has equal steps. In all 6 n to 16 n
//            exponentials, and 25 n there.
// workspace  7 doubles and 4 bytes a value.

static constexpr double margin = 8 * 0x1p-52;
static constexpr int64_t abreast = 4;  // exponentials side by side: one alone waits for its own polynomial

struct PowerLawWorkspace {
  int64_t capacity;        // values, a multiple of the register
  double *x, *gap;         // x ascending, x[-1] exists
  double* log_to_top;      // T
  double *excess, *slope;  // E, s; 0 where there is no candidate
  double* share;           // 1 / m
  double* bound;           // below D; infinite where there is no candidate, or none any more
  int32_t* alive;          // registers of candidates that are alive

  PowerLawWorkspace(Arena& arena, int64_t n) : capacity(round_up(n, SimdD::lanes)) {
    x = arena.take<double>(capacity + 2 * SimdD::lanes) + SimdD::lanes;
    double** const rows[] = {&gap, &excess, &slope, &share, &bound};
    for (double** row : rows) *row = arena.take<double>(capacity);
    log_to_top = arena.take<double>(capacity + abreast * SimdD::lanes);
    alive = arena.take<int32_t>(capacity / SimdD::lanes);
  }
};

static inline VectorD lane_numbers() {
  VectorD numbers{};
  for (int64_t l = 0; l < SimdD::lanes; ++l) numbers[l] = static_cast<double>(l);
  return numbers;
}

static inline VectorD magnitude(VectorD x) { return of_bits(bits_of(x) & 0x7fffffffffffffff); }

static inline double largest_lane(VectorD x) {
  double largest = x[0];
  for (int64_t l = 1; l < SimdD::lanes; ++l) largest = x[l] > largest ? x[l] : largest;
  return largest;
}

static inline double least_lane(VectorD x) { return -largest_lane(-x); }

// A sum that keeps what its roundings lose.
struct CompensatedSum {
  double sum = 0, lost = 0;

  inline void add(double term) {
    const double next = sum + term, added = next - sum;
    lost += (sum - (next - added)) + (term - added);
    sum = next;
  }
  inline double total() const { return sum + lost; }
};

// T, E, s and 1/m of the N = count > 0 values in ws.x.
static void tails(const PowerLawWorkspace& ws, int64_t count) {
  const int64_t padded = round_up(count, SimdD::lanes);
  ws.x[-1] = ws.x[0];
  for (int64_t j = count; j < padded; ++j) ws.x[j] = ws.x[count - 1];
  for (int64_t j = 0; j < padded; j += SimdD::lanes)
    SimdD::store(ws.gap + j, log_ratio(SimdD::load(ws.x + j), SimdD::load_unaligned(ws.x + j - 1)));

  CompensatedSum log_to_top, excess;
  for (int64_t j = count; j < padded; ++j) ws.excess[j] = 0;
  for (int64_t j = count; j < padded + abreast * SimdD::lanes; ++j) ws.log_to_top[j] = 0;
  for (int64_t j = count - 1; j >= 0; --j) {
    ws.log_to_top[j] = log_to_top.total();
    ws.excess[j] = excess.total();
    log_to_top.add(ws.gap[j]);
    excess.add(static_cast<double>(count - j) * ws.gap[j]);
  }
  VectorD m = static_cast<double>(count) - lane_numbers();
  for (int64_t j = 0; j < padded; j += SimdD::lanes, m -= SimdD::lanes) {
    const VectorD excess_j = SimdD::load(ws.excess + j);
    SimdD::store(ws.slope + j, excess_j > 0 ? m / excess_j : VectorD{});
    SimdD::store(ws.share + j, 1 / m);
  }
}

// A, for tails that start at T = level and have `before` = j - i values below T_j.
static inline VectorD apart(VectorD slope, VectorD level, VectorD log_to_top, VectorD before, VectorD share) {
  return magnitude((1 - exp_minus(slope * (level - log_to_top))) - before * share);
}

struct Farthest {
  double distance;  // D
  int64_t place;    // j
};

static Farthest farthest(const PowerLawWorkspace& ws, int64_t count, int64_t i) {
  const VectorD slope = SimdD::broadcast(ws.slope[i]), level = SimdD::broadcast(ws.log_to_top[i]);
  const VectorD share = SimdD::broadcast(ws.share[i]), m = SimdD::broadcast(static_cast<double>(count - i));
  VectorD before[abreast], largest[abreast], place[abreast];
  for (int64_t c = 0; c < abreast; ++c) {
    before[c] = lane_numbers() + static_cast<double>(c * SimdD::lanes);
    largest[c] = place[c] = VectorD{};
  }
  for (int64_t j = i; j < count; j += abreast * SimdD::lanes) {
    SF_UNROLL
    for (int64_t c = 0; c < abreast; ++c) {
      const VectorD log_to_top = SimdD::load_unaligned(ws.log_to_top + j + c * SimdD::lanes);
      const VectorD a = apart(slope, level, log_to_top, before[c], share);
      const IntegersD better = (before[c] < m) & (a > largest[c]);
      largest[c] = better ? a : largest[c];
      place[c] = better ? before[c] : place[c];
      before[c] += abreast * SimdD::lanes;
    }
  }
  Farthest found{0, i};
  for (int64_t c = 0; c < abreast; ++c)
    for (int64_t l = 0; l < SimdD::lanes; ++l)
      if (largest[c][l] > found.distance) found = {largest[c][l], i + static_cast<int64_t>(place[c][l])};
  return found;
}

// Raises the bounds of the `lanes` candidates from `first` on by |A| at `place`.
static inline void cut(const PowerLawWorkspace& ws, int64_t first, int64_t place, VectorD* bound) {
  const VectorD before = static_cast<double>(place - first) - lane_numbers();
  const VectorD log_to_top = SimdD::broadcast(ws.log_to_top[place]);
  const VectorD a =
      apart(SimdD::load(ws.slope + first), SimdD::load(ws.log_to_top + first), log_to_top, before, SimdD::load(ws.share + first));
  *bound = (before >= 0) & (a > *bound) ? a : *bound;
}

// First bounds of all candidates; returns how many registers of them there are.
static int64_t first_bounds(const PowerLawWorkspace& ws, int64_t count) {
  constexpr int64_t places = 4;
  int64_t registers = 0;
  for (int64_t first = 0; first < count; first += SimdD::lanes) {
    // A run of equal values starts where there is a gap; what is not smaller than the largest value has no tail.
    const VectorD gap = SimdD::load(ws.gap + first), slope = SimdD::load(ws.slope + first);
    const VectorD number = lane_numbers() + static_cast<double>(first);
    const IntegersD candidate = ((gap > 0) | (number == 0)) & (slope > 0);
    const int64_t last = first + SimdD::lanes - 1 < count - 1 ? first + SimdD::lanes - 1 : count - 1;
    VectorD bound{};
    SF_UNROLL
    for (int64_t p = 1; p <= places; ++p) cut(ws, first, last + (count - 1 - last) * p / places, &bound);
    SimdD::store(ws.bound + first, candidate ? bound : VectorD{} + __builtin_inf());
    ws.alive[registers++] = static_cast<int32_t>(first / SimdD::lanes);
  }
  return registers;
}

// The candidate with the least D, or -1 if there is none.
static int64_t least_distance(const PowerLawWorkspace& ws, int64_t count, double* distance) {
  int64_t best = -1, next = -1, registers = first_bounds(ws, count), place = 0;
  double share_before = 0;
  *distance = __builtin_inf();
  while (registers > 0) {
    // Raise what is alive by the last place found, if there was one, drop what is dead, and find the least that remains.
    double least = __builtin_inf();
    int64_t kept = 0;
    next = -1;
    for (int64_t r = 0; r < registers; ++r) {
      const int64_t first = ws.alive[r] * SimdD::lanes;
      VectorD bound = SimdD::load(ws.bound + first);
      if (best >= 0) {
        cut(ws, first, place, &bound);
        cut(ws, first, first + static_cast<int64_t>(share_before * static_cast<double>(count - 1 - first)), &bound);
      }
      SimdD::store(ws.bound + first, bound);
      const double lowest = least_lane(bound);
      if (!(lowest <= *distance + margin) || lowest == __builtin_inf()) continue;
      ws.alive[kept++] = ws.alive[r];
      if (lowest < least) {
        least = lowest;
        for (int64_t l = SimdD::lanes - 1; l >= 0; --l)
          if (bound[l] == lowest) next = first + l;
      }
    }
    registers = kept;
    if (next < 0) break;
    const Farthest found = farthest(ws, count, next);
    ws.bound[next] = __builtin_inf();
    place = found.place;
    share_before = static_cast<double>(place - next) / static_cast<double>(count - next);
    if (found.distance < *distance || (found.distance == *distance && next < best)) {
      *distance = found.distance;
      best = next;
    }
  }
  return best;
}

// s and D of the tail that starts at `first`; no such tail where first < 0.
struct Tail {
  int64_t first;
  double slope, distance;
};

static constexpr Tail no_tail = {-1, 0, 0};

// The best tail of the `count` > 0 positive values in ws.x.
static Tail best_tail(const PowerLawWorkspace& ws, int64_t count) {
  tails(ws, count);
  double distance;
  const int64_t best = least_distance(ws, count, &distance);
  return best < 0 ? no_tail : Tail{best, ws.slope[best], distance};
}

// The tail of those of the `count` positive values in ws.x that are >= xmin. Its logarithms are taken to xmin, which need not be
// one of the values.
static Tail tail_above(const PowerLawWorkspace& ws, int64_t count, double xmin) {
  int64_t first = 0;
  while (first < count && !(ws.x[first] >= xmin)) ++first;
  if (!(xmin > 0) || first >= count - 1 || ws.x[first] == ws.x[count - 1]) return no_tail;
  const int64_t m = count - first;
  for (int64_t j = count; j < round_up(count, SimdD::lanes) + SimdD::lanes; ++j) ws.x[j] = xmin;
  CompensatedSum excess;
  for (int64_t j = 0; j < m; j += SimdD::lanes) {
    const VectorD log = log_ratio(SimdD::load_unaligned(ws.x + first + j), SimdD::broadcast(xmin));
    SimdD::store(ws.gap + j, log);
    for (int64_t l = 0; l < SimdD::lanes && j + l < m; ++l) excess.add(log[l]);
  }
  const double slope = static_cast<double>(m) / excess.total();
  VectorD before = lane_numbers(), largest{};
  for (int64_t j = 0; j < m; j += SimdD::lanes, before += SimdD::lanes) {
    const VectorD a =
        apart(SimdD::broadcast(slope), SimdD::load(ws.gap + j), VectorD{}, before, SimdD::broadcast(1 / static_cast<double>(m)));
    largest = (before < static_cast<double>(m)) & (a > largest) ? a : largest;
  }
  return {first, slope, largest_lane(largest)};
}

// Copies the positive ones of n ascending values to ws.x and returns how many there are.
static int64_t take_positive(const PowerLawWorkspace& ws, const double* x, int64_t n) {
  int64_t first = 0;
  while (first < n && !(x[first] > 0)) ++first;
  for (int64_t j = first; j < n; ++j) ws.x[j - first] = x[j];
  return n - first;
}

// What is reported of a tail of m values.
static PowerLawFit fit_of(const Tail& tail, int64_t m, double xmin) {
  return {1 + tail.slope, tail.slope / __builtin_sqrt(static_cast<double>(m)), xmin, tail.distance};
}

static void fit_powerlaw(const double* x, int64_t n, double xmin, PowerLawFit* fit, int64_t* n_tail, void* workspace) {
  Arena arena{static_cast<char*>(workspace), 0};
  const PowerLawWorkspace ws(arena, n);
  const int64_t count = x[0] == x[0] ? take_positive(ws, x, n) : 0;
  const bool search = !(xmin == xmin);
  const Tail tail = count == 0 ? no_tail : search ? best_tail(ws, count) : tail_above(ws, count, xmin);
  const double missing = __builtin_nan("");
  *n_tail = tail.first < 0 ? 0 : count - tail.first;
  *fit =
      tail.first < 0 ? PowerLawFit{missing, missing, missing, missing} : fit_of(tail, *n_tail, search ? ws.x[tail.first] : xmin);
}

// After tails(): 1 + m / E at the place where the k largest values begin.
static double hill_of(const PowerLawWorkspace& ws, int64_t count, int64_t k) {
  if (k < 1 || k > count || !(ws.excess[count - k] > 0)) return __builtin_nan("");
  return 1 + static_cast<double>(k) / ws.excess[count - k];
}

// Of the k largest values, or of the upper half of the positive ones; the others do not enter.
static double hill_alpha(const double* x, int64_t n, int64_t k, void* workspace) {
  Arena arena{static_cast<char*>(workspace), 0};
  const PowerLawWorkspace ws(arena, n);
  int64_t zeros = 0;
  while (zeros < n && !(x[zeros] > 0)) ++zeros;
  const int64_t count = x[0] == x[0] ? n - zeros : 0;
  if (k <= 0) k = count - count / 2;
  if (count == 0 || k > count) return __builtin_nan("");
  take_positive(ws, x + n - k, k);
  tails(ws, k);
  return hill_of(ws, k, k);
}
