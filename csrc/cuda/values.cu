// Stage `values`: singular values of upper bidiagonal matrices (diagonal d, superdiagonal e), a lane of a warp for each value.
//
// The mathematics is csrc/cpu/values.inl's. With q_i = d_i^2 the number of singular values below sqrt(mu) is that of the negative
// p_i in the differential form of Fernando and Parlett (1994), which makes small values relatively accurate; its derivatives
// with respect to mu (s' = mu ds/dmu, s'' = mu^2 d^2s/dmu^2) cost no further division:
//
//   p_i = q_i + s_i,   r_i = 1 / p_i,   u_i = s_i' r_i,   v_i = u_i^2 - s_i'' r_i,   t_i = q_i r_i e_i^2,
//   s_{i+1} = s_i r_i e_i^2 - mu,   s_{i+1}' = t_i u_i - mu,   s_{i+1}'' = -t_i (v_i + u_i^2),   s_1 = s_1' = -mu,   s_1'' = 0,
//   g = sum u_i = sum_j mu / (mu - lambda_j),    h = sum v_i = sum_j (mu / (mu - lambda_j))^2,      lambda_j = sigma_j^2.
//
// From mu, m values at one place lie at the relative distance 2 m / (-+ g + sqrt(2 m h - g^2)): Laguerre's step (Hansen and
// Patrick 1977; Li and Zeng 1994), cubically convergent from outside.
//
// `count_grid` counts at n points even in sigma. In `bisect` every lane then has a bracket (low, high] of its value whose ends
// have been counted. Adjacent lanes of a warp with the same bracket divide it together, each counting at one point of it: at
// Laguerre's step from the nearer end (one value) or at those from both ends (several, taken for one cluster; for two separate
// values these fall between them), and else at points that divide the floating-point numbers in it evenly, geometrically where it
// is wide. Then every lane takes the two points next to its value. Where a round neither halved a bracket nor came closer to a
// value, all points of the next are even. Shuffles are all that lanes share: no memory, no barrier.
//
// A value is found when the distance of an end to the nearest other value bounds the share of the others in h: `found`. So the
// last, cubically convergent step costs no count, and what it returns is certified by counts.
//
// Rounds, the mean over warps of the largest of a warp's lanes, beside the grid's (n = 768): Gaussian 4.6 (float32), 5.0
// (float64), 5.9 (float32 throughout); sigma_k = k^-0.6: 6.9, 7.6, 8.5; graded over 30 decades 14 to 15; bisection would take 16
// and 42. At most max_steps + 61: from there on a round halves the floating-point numbers in a bracket, 2^61 at first.
//
// Cost of a round and step i for a warp: 20 instructions of the Wide pipe and one MUFU, 9 of them and the MUFU in the chain from
// s_i to s_{i+1}; 2 sizeof(Wide) bytes, the same for all lanes, loaded four to eight steps ahead.
//
//   kernel       grid              threads   cost of a matrix
//   squares      B                 32        4 n sizeof(Wide) bytes
//   count_grid   B, ceil(n / 32)   32        20 n^2 Wide operations
//   bisect       B, ceil(n / 32)   32        rounds times that
//   finish       B                 32        n (sizeof(Wide) + sizeof(Scalar)) bytes
#include "kernels.h"

constexpr bool narrow = sizeof(Wide) == sizeof(float);
constexpr Wide epsilon = narrow ? 0x1p-23 : 0x1p-52;

// Of a square, twice that of a value: an eighth of a unit of the output, or the distance of neighbouring numbers.
constexpr Wide tolerance = sizeof(Scalar) == sizeof(Wide) ? epsilon : 0x1p-26;

// All of the following for norms of rows below 2 and of columns below 4, and for a float whose subnormals are flushed to zero.
//
// Values below this part of the bound are returned as zero: s r e^2 and t, where they matter, must not vanish.
constexpr Wide floor_ratio = narrow ? 0x1p-30 : 0x1p-240;
// Squares of diagonal entries below it count as zero.
constexpr Wide negligible = narrow ? 0x1p-96 : 0x1p-900;
// Added to every pivot. Larger ones do not change; zero becomes a number whose inverse times s e^2 < 2^5 does not overflow. No
// q_i + s_i cancels it: q_i is zero or a multiple of 2^-23 (2^-52) times `negligible`, and s_i one of epsilon^2 times mu / 4.
constexpr Wide smallest_pivot = narrow ? 0x1p-121 : 0x1.0000000000001p-980;
// What h may have cancelled from, relative to it: the rest, and a distance that follows, has the error h_error.
constexpr Wide cancellation = narrow ? 0x1p16 : 0x1p26;
constexpr Wide h_error = narrow ? 0x1p-7 : 0x1p-27;
constexpr Wide huge = narrow ? 0x1p100 : 0x1p1000;

constexpr int unroll = 4;
constexpr int max_steps = 32;  // rounds with Laguerre's step
// More are never needed. No input, and no fault of a chip, shall keep a GPU busy for ever.
constexpr int max_rounds = max_steps + 64;

// q_i and e_i^2, one load. A row is padded to a multiple of `unroll` with pivots that change neither counts nor sums.
struct alignas(2 * sizeof(Wide)) Squares {
  Wide q, e2;
};
constexpr Wide padding = narrow ? 0x1p60 : 0x1p600;
__device__ inline long long padded(long long n) { return (n + unroll - 1) / unroll * unroll; }

__device__ inline int is_negative(double x) { return static_cast<int>(__double_as_longlong(x) >> 63) & 1; }
__device__ inline int is_negative(float x) { return (__float_as_int(x) >> 31) & 1; }

// d, e (B x n) -> squares (B x padded(n) x 2), range (B x 2): a bound of the scaled values, and what they were divided by.
extern "C" __global__ void __launch_bounds__(32) squares(const Wide* d, const Wide* e, long long n, Wide* squares, Wide* range) {
  const long long matrix = blockIdx.x;
  const int lane = threadIdx.x;
  d += matrix * n;
  e += matrix * n;
  // |B|_2 <= sqrt(|B|_1 |B|_inf), the norms being sums of two neighbours.
  Wide row_norm = 0, col_norm = 0;
  for (long long i = lane; i < n; i += warp_size) {
    const Wide di = fabs(d[i]);
    row_norm = fmax(row_norm, di + fabs(e[i]));
    col_norm = fmax(col_norm, i > 0 ? di + fabs(e[i - 1]) : di);
  }
  for (int offset = warp_size / 2; offset > 0; offset /= 2) {
    row_norm = fmax(row_norm, __shfl_xor_sync(all_lanes, row_norm, offset));
    col_norm = fmax(col_norm, __shfl_xor_sync(all_lanes, col_norm, offset));
  }
  const int exponent = row_norm > 0 ? ilogb(row_norm) : 0;
  const Wide norm = sqrt(ldexp(row_norm, -exponent)) * sqrt(ldexp(col_norm, -exponent));
  if (lane == 0) {
    range[2 * matrix] = norm * (1 + 4 * epsilon);
    range[2 * matrix + 1] = ldexp(Wide(1), exponent);
  }
  Squares* const out = reinterpret_cast<Squares*>(squares) + matrix * padded(n);
  for (long long i = lane; i < padded(n); i += warp_size) {
    Squares both = {padding, 0};
    if (i < n) {
      const Wide di = ldexp(d[i], -exponent), ei = ldexp(e[i], -exponent);
      both = {di * di < negligible ? 0 : di * di, ei * ei};
    }
    out[i] = both;
  }
}

struct Counted {
  int below;  // values
  Wide g, h;  // zero where rounding has spoilt them
};

__device__ inline Counted sturm(const Squares* __restrict__ squares, long long n, Wide mu) {
  // dds is -s''. sum, of u^2, is what h may have cancelled from.
  Wide s = -mu, ds = -mu, dds = 0, g = 0, h = 0, sum = 0;
  int below = 0;
  const long long end = padded(n);
  Squares next[unroll];
#pragma unroll
  for (int l = 0; l < unroll; ++l) next[l] = squares[l];
  for (long long i = 0; i < end; i += unroll) {
    Squares now[unroll];
    const Squares* const ahead = squares + (i + unroll < end ? i + unroll : 0);
#pragma unroll
    for (int l = 0; l < unroll; ++l) {
      now[l] = next[l];
      next[l] = ahead[l];
    }
#pragma unroll
    for (int l = 0; l < unroll; ++l) {
      const Wide q = now[l].q, e2 = now[l].e2;
      const Wide p = q + s + smallest_pivot;
      const Wide inverse = 1 / p;
      below += is_negative(p);
      const Wide u = ds * inverse, u2 = u * u, v = u2 + dds * inverse;
      g += u;
      h += v;
      sum += u2;
      // Not q e^2: it may underflow where its quotient by p does not. Nor s e^2.
      const Wide t = q * inverse * e2;
      ds = t * u - mu;
      dds = t * (v + u2);
      s = s * inverse * e2 - mu;
    }
  }
  const bool good = h < huge && sum < cancellation * h;
  return {below, good ? g : 0, good ? h : 0};
}

// Point i < n, squared: even in sigma but for the first, and ascending. The n-th would be the bound.
__device__ inline Wide grid_point(long long i, long long n, Wide bound) {
  const Wide x = bound * (i > 0 ? static_cast<Wide>(i) / static_cast<Wide>(n) : floor_ratio);
  return x * x;
}

// counts (B x n): values below the points of the grid; slopes (B x n x 2): g and h there. Not written where all values are zero.
extern "C" __global__ void __launch_bounds__(32)
    count_grid(const Wide* __restrict__ squares, const Wide* __restrict__ range, long long n, int* counts, Wide* slopes) {
  const long long matrix = blockIdx.x, i = static_cast<long long>(blockIdx.y) * warp_size + threadIdx.x;
  const Wide bound = range[2 * matrix];
  if (i >= n || !(bound > 0)) return;
  const Counted at = sturm(reinterpret_cast<const Squares*>(squares) + matrix * padded(n), n, grid_point(i, n, bound));
  counts[matrix * n + i] = at.below;
  slopes[2 * (matrix * n + i)] = at.g;
  slopes[2 * (matrix * n + i) + 1] = at.h;
}

// The first i whose count is above k, or n. Where rounding has put counts out of order: one above k next to one that is not.
__device__ inline int first_above(const int* __restrict__ counts, long long n, long long k) {
  int under = -1, above = static_cast<int>(n);
  while (above - under > 1) {
    const int middle = (under + above) / 2;
    (counts[middle] > k ? above : under) = middle;
  }
  return above;
}

// An end of a bracket.
struct End {
  Wide x;
  Wide outer;  // no value between x and it, on the side away from the bracket, if the bracket has one value
  Counted at;
};

__device__ inline long long to_bits(double x) { return __double_as_longlong(x); }
__device__ inline int to_bits(float x) { return __float_as_int(x); }
__device__ inline double from_bits(long long bits) { return __longlong_as_double(bits); }
__device__ inline float from_bits(int bits) { return __int_as_float(bits); }

__device__ inline bool is_wide(Wide low, Wide high) { return high > 16 * low; }

// Relative distance of m values at one place, on the side where they make g negative.
__device__ inline Wide laguerre_step(Wide g, Wide h, Wide m) {
  const Wide u = sqrt(fmax(2 * m * h - g * g, Wide(0))) - g;
  return h > 0 && u > 0 ? 2 * m / u : huge;
}

// The index-th of `size` ascending points in (low, high).
__device__ inline Wide next_point(const End& low, const End& high, bool spread, int index, int size) {
  const Wide a = low.x, b = high.x;
  Wide left = 0, right = 0;
  bool take_left = false, take_right = false;
  if (!spread) {
    const Wide m = static_cast<Wide>(high.at.below - low.at.below);
    // From the upper end of a wide bracket all values below it are at zero, a relative distance of one.
    const Wide zeros = is_wide(a, b) ? static_cast<Wide>(low.at.below) : 0;
    const Wide from_low = a + a * laguerre_step(low.at.g, low.at.h, m);
    const Wide from_high = b - b * laguerre_step(zeros - high.at.g, high.at.h - zeros, m);
    const Wide pad = b * (tolerance / 4 > epsilon ? tolerance / 4 : epsilon);
    if (m == 1) {
      left = from_low - a < b - from_high ? from_low : from_high;
      if (!is_wide(a, b) && low.at.h + high.at.h > 0) {
        // A step that meets the other end: the value is there, if the step is right.
        left = left > a ? left : a + pad;
        left = left < b ? left : b - pad;
      }
      take_left = left > a && left < b;
    } else {
      // Both steps fall short of a tight cluster. A little shorter still, one count on either side confirms it.
      left = fmin(from_low, from_high), right = fmax(from_low, from_high);
      const Wide gap = (right - left) / 16, left_step = (left - a) / 16, right_step = (b - right) / 16;
      left -= fmin(gap, left_step) + pad;
      right += fmin(gap, right_step) + pad;
      take_left = left > a && left < b;
      take_right = right > a && right < b;
      // One point for both: the longer step.
      if (size == 1 && take_left && take_right) (left - a > b - right ? take_right : take_left) = false;
    }
  }
  const auto base = to_bits(a);
  const int even = size - take_left - take_right;
  const Wide step = static_cast<Wide>(to_bits(b) - base) / static_cast<Wide>(even + 1);
  const auto evenly_below = [&](Wide x) { return min(static_cast<int>(static_cast<Wide>(to_bits(x) - base) / step), even); };
  const int left_at = take_left ? evenly_below(left) : -1, right_at = take_right ? evenly_below(right) + take_left : -1;
  if (index == left_at) return left;
  if (index == right_at) return right;
  const int j = index - (take_left && index > left_at) - (take_right && index > right_at);
  return from_bits(base + static_cast<decltype(base + 0)>(step * static_cast<Wide>(j + 1)));
}

// Whether the square in a bracket is known to a relative error of tolerance / 2, and what it is. With D the distance of an end mu
// to the nearest other value, kappa = (n - 1) mu^2 / (D^2 h) bounds the others' share of h, hence
//
//   mu / sqrt(h) <= |mu - lambda| <= mu / sqrt(h (1 - kappa)),   a difference of at most 3/4 kappa mu / sqrt(h) if kappa <= 1/2.
__device__ inline bool found(const End& low, const End& high, long long n, Wide floor, Wide* square) {
  if (high.x <= floor) {
    *square = 0;
    return true;
  }
  if (!(high.x - low.x > tolerance * high.x)) {
    *square = (low.x + high.x) / 2;
    return true;
  }
  if (high.at.below - low.at.below > 1) return false;
  const bool from_low = low.at.h > high.at.h;
  const Wide x = from_low ? low.x : high.x, h = from_low ? low.at.h : high.at.h;
  const Wide distance = fmin(x - low.outer, high.outer - x) / x;
  const Wide kappa = static_cast<Wide>(n - 1) / (distance * distance * h), error = Wide(0.75) * kappa + h_error;
  constexpr Wide quarter = tolerance / 4;
  if (!(kappa < Wide(0.5) && error * error < quarter * quarter * h)) return false;
  *square = fmin(fmax(x + (from_low ? x : -x) / sqrt(h), low.x), high.x);
  return true;
}

// roots (B x n): the values in units of d and e, ascending but for rounding. Lanes beyond n help with the last value.
extern "C" __global__ void __launch_bounds__(32)
    bisect(const Wide* __restrict__ squares, const Wide* __restrict__ range, const int* __restrict__ counts,
           const Wide* __restrict__ slopes, long long n, Wide* roots) {
  const int lane = threadIdx.x;
  const long long matrix = blockIdx.x, index = static_cast<long long>(blockIdx.y) * warp_size + lane;
  const long long k = index < n ? index : n - 1;
  const int place = lane - static_cast<int>(index - k);  // whose state this lane's is
  const Squares* const own = reinterpret_cast<const Squares*>(squares) + matrix * padded(n);
  counts += matrix * n;
  slopes += 2 * matrix * n;
  roots += matrix * n;
  const Wide bound = range[2 * matrix], unit = range[2 * matrix + 1];
  if (n == 1 || !(bound > 0)) {
    if (index < n) roots[k] = sqrt(own[k].q) * unit;
    return;
  }
  const Wide floor = grid_point(0, n, bound);
  const auto grid_end = [&](long long i) {
    return End{grid_point(i, n, bound), grid_point(i, n, bound), {counts[i], slopes[2 * i], slopes[2 * i + 1]}};
  };
  // The bracket's upper end and its neighbours': between the lower neighbour's and the lower end there is no value, and between
  // the upper end and the upper neighbour's predecessor.
  const int at = first_above(counts, n, k), edge = first_above(counts, n, place == 0 ? k - 1 : k + 1);
  const int before = __shfl_sync(all_lanes, at, place - 1), after = __shfl_sync(all_lanes, at, place + 1);
  const int lower_at = place == 0 ? edge : before, upper_at = k + 1 == n ? n : place == warp_size - 1 ? edge : after;
  End low{}, high{bound * bound, huge, {static_cast<int>(n), 0, 0}};
  if (at < n) {
    high = grid_end(at);
    if (upper_at > at) high.outer = upper_at < n ? grid_point(upper_at - 1, n, bound) : huge;
  }
  if (at > 0) {
    low = grid_end(at - 1);
    if (lower_at < at) low.outer = grid_point(lower_at, n, bound);
  }

  Wide square;
  bool spread = false, done = found(low, high, n, floor, &square);
  unsigned finished;
  for (int round = 0; (finished = __ballot_sync(all_lanes, done)) != all_lanes && round < max_rounds; ++round) {
    // Lanes first .. first + size - 1 have the same bracket, and so the same past. None is finished before the others.
    const Wide low_before = __shfl_up_sync(all_lanes, low.x, 1), high_before = __shfl_up_sync(all_lanes, high.x, 1);
    const bool differs = lane == 0 || low_before != low.x || high_before != high.x;
    const unsigned starts = __ballot_sync(all_lanes, differs) | (finished ^ finished << 1);
    const unsigned up_to_here = all_lanes >> (warp_size - 1 - lane), later = starts & ~up_to_here;
    const int first = warp_size - 1 - __clz(static_cast<int>(starts & up_to_here));
    const int size = (later ? __ffs(static_cast<int>(later)) - 1 : warp_size) - first;

    spread = spread || round >= max_steps;
    Wide x = high.x;
    Counted point = high.at;
    if (!done) {
      x = next_point(low, high, spread, lane - first, size);
      point = sturm(own, n, x);
      point.below = min(max(point.below, low.at.below), high.at.below);
    }

    // The two of the group's points, or the bracket's ends, next to the value.
    int under = first - 1, above = first + size;
    for (int i = 0; i < 6; ++i) {  // 33 gaps at most
      const int middle = (under + above) / 2;
      const int below = __shfl_sync(all_lanes, point.below, middle);
      if (above - under > 1) (below > k ? above : under) = middle;
    }
    const auto from_lane = [&](int source, Wide outer, int below) {
      const Wide there = __shfl_sync(all_lanes, x, source);
      const Counted counted = {__shfl_sync(all_lanes, point.below, source), __shfl_sync(all_lanes, point.g, source),
                               __shfl_sync(all_lanes, point.h, source)};
      return End{there, counted.below == below ? outer : there, counted};
    };
    const End new_low = from_lane(under, low.outer, low.at.below), new_high = from_lane(above, high.outer, high.at.below);
    const End old_low = low, old_high = high;
    if (!done && under >= first) low = new_low;
    if (!done && above < first + size) high = new_high;

    // All values below are below the lower neighbour's upper end.
    const Wide lower = __shfl_sync(all_lanes, high.x, place - 1), upper = __shfl_sync(all_lanes, low.x, place + 1);
    if (!done) {
      if (place > 0) low.outer = fmin(low.outer, lower);
      if (place < warp_size - 1) high.outer = fmax(high.outer, upper);
      const bool divided = high.at.below - low.at.below < old_high.at.below - old_low.at.below;
      const bool closer = low.at.h > 16 * old_low.at.h || high.at.h > 16 * old_high.at.h;
      const bool halved = is_wide(old_low.x, old_high.x) ? high.x / low.x <= sqrt(old_high.x / old_low.x)
                                                         : high.x - low.x <= (old_high.x - old_low.x) / 2;
      spread = !spread && !divided && !halved && !closer;
      done = found(low, high, n, floor, &square);
    }
  }
  if (!done) square = (low.x + high.x) / 2;
  if (index < n) roots[k] = sqrt(square) * unit;
}

// A float below 2^-126 is the integer that its bits are, times 2^-149: arithmetic would make zero of it.
__device__ inline bool subnormal_float(Wide x, int exponent, Scalar* value) {
  if constexpr (sizeof(Scalar) == sizeof(float)) {
    const Wide units = ldexp(x, exponent + 149);
    if (units < 0x1p23) {
      *value = __int_as_float(static_cast<int>(rint(units)));
      return true;
    }
  }
  return false;
}

// roots (B x n) times 2^exponent -> out (B x n), descending; NaN where info is not zero. A value certified to be no larger than
// its neighbour, but computed a rounding larger, becomes equal to it.
extern "C" __global__ void __launch_bounds__(32)
    finish(const Wide* roots, const int* exponent, const int* info, long long n, Scalar* out) {
  constexpr int rows = 8;  // scanned side by side: a shuffle's latency is hidden by the others'
  const long long matrix = blockIdx.x;
  const int lane = threadIdx.x;
  roots += matrix * n;
  out += matrix * n;
  // Twice: each factor alone is in range, and only the second product may be subnormal, in double.
  const int whole = exponent[matrix];
  const Wide scale = ldexp(Wide(1), whole / 2), rest = ldexp(Wide(1), whole - whole / 2);
  const bool failed = info[matrix] != 0;
  Wide least = roots[n - 1];
  for (long long first = 0; first < n; first += rows * warp_size) {
    Wide x[rows];
#pragma unroll
    for (int r = 0; r < rows; ++r) {
      const long long i = first + r * warp_size + lane;
      x[r] = roots[i < n ? n - 1 - i : 0];
    }
#pragma unroll
    for (int offset = 1; offset < warp_size; offset *= 2) {
#pragma unroll
      for (int r = 0; r < rows; ++r) {
        const Wide before = __shfl_up_sync(all_lanes, x[r], offset);
        x[r] = lane >= offset ? fmin(x[r], before) : x[r];
      }
    }
#pragma unroll
    for (int r = 0; r < rows; ++r) {
      x[r] = fmin(x[r], least);
      least = __shfl_sync(all_lanes, x[r], warp_size - 1);
      const long long i = first + r * warp_size + lane;
      Scalar value;
      if (!subnormal_float(x[r], whole, &value)) value = static_cast<Scalar>(x[r] * scale * rest);
      if (i < n) out[i] = failed ? static_cast<Scalar>(__int_as_float(0x7fc00000)) : value;
    }
  }
}
