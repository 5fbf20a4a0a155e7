// An elementary reflector H = I - tau v v^T, v_0 = 1, with H x = (beta, 0, ..., 0)^T (LAPACK xLARFG, Golub & Van Loan 5.1):
//
//   beta = -sign(x_0) |x|,   tau = (beta - x_0) / beta,   v = x / (x_0 - beta) below the first entry.
//
// The scalars are computed in double; no overflow is possible since `load` keeps entries in range. The sum of squares is
// compensated (Kahan 1965): its error is common to a whole reflector, so it would grow into the values, where the roundings of
// the updates cancel at random. It costs O(m) beside O(m n).

template <typename T>
static inline double compensated_dot(const T* x, const T* y, int64_t n) {
  constexpr int64_t width = 8;  // independent sums hide the latency of the compensation
  double sum[width] = {}, lost[width] = {};
  int64_t i = 0;
  for (; i + width <= n; i += width)
    for (int64_t l = 0; l < width; ++l) {
      const double term = static_cast<double>(x[i + l]) * y[i + l] - lost[l];
      const double total = sum[l] + term;
      lost[l] = (total - sum[l]) - term;
      sum[l] = total;
    }
  for (int64_t l = 0; i < n; ++i, ++l) {
    const double term = static_cast<double>(x[i]) * y[i] - lost[l];
    const double total = sum[l] + term;
    lost[l] = (total - sum[l]) - term;
    sum[l] = total;
  }
  double result = 0, rest = 0;
  for (int64_t l = 0; l < width; ++l) {
    const double term = sum[l] - (lost[l] + rest);
    const double total = result + term;
    rest = (total - result) - term;
    result = total;
  }
  return result;
}

// Entries below 2^-450 of an entry near one are dropped in double: their squares are subnormal, and a norm of few digits would
// make an H that is not orthogonal, which then is applied to large columns. In float32 it is the products with 1 / x that
// must stay in range; 2^-60 of the largest entry is far below the last unit of the largest value.
template <typename T>
static constexpr double negligible_squared = sizeof(T) == sizeof(float) ? 0x1p-120 : 0x1p-900;

struct Reflector {
  double beta, tau, inverse;  // v_i = x_i * inverse
};

template <typename T>
static inline Reflector make_reflector(double x0, double rest_squared) {
  if (rest_squared < negligible_squared<T>) return {x0, 0, 0};
  const double norm = __builtin_sqrt(x0 * x0 + rest_squared);
  const double beta = -__builtin_copysign(norm, x0);  // no branch: the sign is a coin toss
  return {beta, (beta - x0) / beta, 1 / (x0 - beta)};
}

// The same with nothing rounded but beta, where the output is as wide as the arithmetic. An error of tau, of 1 / (x_0 - beta) or
// of beta itself is common to a whole reflector, so it reaches the values undiminished; the roundings of single entries do not.
//
//   H = I - u u^T / h,   u = (x_0 - beta, x_1, x_2, ...),   h = u^T u / 2 = |beta| |x_0 - beta|
//
// with the entries of x as they are, so that u is exact but for its first entry, which is a Pair, and so is 1 / h.
template <typename Real>
struct PreciseReflectorOf {
  Real beta;
  PairOf<Real> first, inverse;  // u_0, 1 / h
};
typedef PreciseReflectorOf<double> PreciseReflector;

// square: |x|^2, above zero
template <typename Real>
static inline PreciseReflectorOf<Real> precise_reflector(PairOf<Real> x0, PairOf<Real> square) {
  const Real root = square_root(square.hi);
  const PairOf<Real> norm = exact_sum(root, rounded(square - exact_product(root, root)) / (2.0 * root));
  const PairOf<Real> beta = {x0.hi < 0.0 ? norm.hi : -norm.hi, x0.hi < 0.0 ? norm.lo : -norm.lo};
  const PairOf<Real> first = normalized(x0 - beta);
  const PairOf<Real> h = normalized(first * beta);
  const Real inverse = -1.0 / h.hi;
  const PairOf<Real> one_less = PairOf<Real>{Real{} + 1.0, Real{}} + h * inverse;
  return {beta.hi, first, exact_sum(inverse, rounded(one_less) * inverse)};
}

static inline PreciseReflector make_precise_reflector(Pair x0, Pair rest_squared) {
  if (rest_squared.hi < negligible_squared<double>) return {rounded(x0), {0, 0}, {0, 0}};
  return precise_reflector(x0, normalized(x0 * x0 + rest_squared));
}
