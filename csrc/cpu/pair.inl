// Sums of two doubles: x = hi + lo with |lo| <= half a unit of hi, 2^-104 relative (Dekker 1971; Ogita, Rump and Oishi 2005).
//
//   sum      s = fl(a + b),  t = s - a,  e = (a - (s - t)) + (b - t)       a + b = s + e     (Knuth's TwoSum)
//   product  p = fl(a b),    e = a b - p, by fma or from halves of 26 bits  a b = p + e
//
// What is left of the second order, lo * lo, is dropped. Loops over these are plain: the compiler vectorizes them. Real is a
// double or a register of them.

template <typename Real>
struct PairOf {
  Real hi, lo;
};
typedef PairOf<double> Pair;

static inline double square_root(double x) { return __builtin_sqrt(x); }
static inline VectorD square_root(VectorD x) {
  for (int l = 0; l < SimdD::lanes; ++l) x[l] = __builtin_sqrt(x[l]);
  return x;
}

template <typename Real>
static inline PairOf<Real> exact_sum(Real a, Real b) {
  const Real s = a + b, t = s - a;
  return {s, (a - (s - t)) + (b - t)};
}

#if defined(__FMA__) || defined(__aarch64__)
static inline double fused(double a, double b, double c) { return __builtin_fma(a, b, c); }
static inline VectorD fused(VectorD a, VectorD b, VectorD c) {
  for (int l = 0; l < SimdD::lanes; ++l) c[l] = __builtin_fma(a[l], b[l], c[l]);
  return c;
}
#else
template <typename Real>
static inline PairOf<Real> halves(Real a) {
  const Real c = 0x1.0000002p27 * a, high = c - (c - a);
  return {high, a - high};
}
#endif

template <typename Real>
static inline PairOf<Real> exact_product(Real a, Real b) {
  const Real p = a * b;
#if defined(__FMA__) || defined(__aarch64__)
  return {p, fused(a, b, -p)};
#else
  const PairOf<Real> x = halves(a), y = halves(b);
  return {p, ((x.hi * y.hi - p) + x.hi * y.lo + x.lo * y.hi) + x.lo * y.lo};
#endif
}

template <typename Real>
static inline PairOf<Real> operator+(PairOf<Real> x, PairOf<Real> y) {
  const PairOf<Real> s = exact_sum(x.hi, y.hi);
  return {s.hi, s.lo + (x.lo + y.lo)};
}
template <typename Real>
static inline PairOf<Real> operator-(PairOf<Real> x, PairOf<Real> y) {
  return x + PairOf<Real>{-y.hi, -y.lo};
}
template <typename Real>
static inline PairOf<Real> operator*(PairOf<Real> x, PairOf<Real> y) {
  const PairOf<Real> p = exact_product(x.hi, y.hi);
  return {p.hi, p.lo + (x.hi * y.lo + x.lo * y.hi)};
}
template <typename Real>
static inline PairOf<Real> operator*(PairOf<Real> x, Real y) {
  const PairOf<Real> p = exact_product(x.hi, y);
  return {p.hi, p.lo + x.lo * y};
}
template <typename Real>
static inline Real rounded(PairOf<Real> x) {
  return x.hi + x.lo;
}
template <typename Real>
static inline PairOf<Real> normalized(PairOf<Real> x) {
  return exact_sum(x.hi, x.lo);
}

// x . y
static inline Pair precise_dot(const double* x, const double* y, int64_t n) {
  constexpr int64_t width = 8;
  double hi[width] = {}, lo[width] = {};
  int64_t i = 0;
  for (; i + width <= n; i += width)
    for (int64_t l = 0; l < width; ++l) {
      const Pair sum = Pair{hi[l], lo[l]} + exact_product(x[i + l], y[i + l]);
      hi[l] = sum.hi, lo[l] = sum.lo;
    }
  for (int64_t l = 0; i < n; ++i, ++l) {
    const Pair sum = Pair{hi[l], lo[l]} + exact_product(x[i], y[i]);
    hi[l] = sum.hi, lo[l] = sum.lo;
  }
  Pair total{0, 0};
  for (int64_t l = 0; l < width; ++l) total = total + Pair{hi[l], lo[l]};
  return normalized(total);
}
