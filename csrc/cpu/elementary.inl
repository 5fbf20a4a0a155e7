// Logarithm and exponential of a register of doubles, as the statistics need them.
//
//   log_ratio(x, y) = ln(x / y), x, y > 0 and finite. With x = a 2^i, y = b 2^j and a power of two moved between them so that
//   1/sqrt(2) <= a/b <= sqrt(2), a - b is exact and with t = (a - b) / (a + b)
//
//       ln(x / y) = (i - j) ln 2 + 2 artanh t,     2 artanh t = 2 t + t^3 P(t^2),   |t| <= 0.1716.
//
//   So the result is right to 2 ulp however close x and y are, which the logarithm of a rounded quotient is not.
//
//   exp_minus(t) = e^-t, t >= 0. With k = round(t / ln 2), r = k ln 2 - t: 2^-k e^r, e^r = 1 + r + r^2 Q(r), |r| <= 0.3466. Right
//   to 2 ulp of 1; below e^-708, where nothing is added to a sum that starts with 1, it stays at e^-708.
//
// P and Q interpolate at Chebyshev nodes: 5e-18 and 2e-17 relative to the result. Source: the reductions are Tang's
// (ACM TOMS 15, 1989, and 16, 1990) without tables.

typedef int64_t IntegersD __attribute__((vector_size(SF_VECTOR_BYTES)));
typedef uint64_t BitsD __attribute__((vector_size(SF_VECTOR_BYTES)));

static inline IntegersD bits_of(VectorD x) { return reinterpret_cast<IntegersD>(x); }
static inline VectorD of_bits(IntegersD bits) { return reinterpret_cast<VectorD>(bits); }

// x = mantissa 2^exponent, 1 <= mantissa < 2.
struct Split {
  VectorD mantissa, exponent;

  explicit Split(VectorD x) {
    const IntegersD tiny = x < 0x1p-1022;
    const IntegersD bits = bits_of(tiny ? x * 0x1p54 : x);
    mantissa = of_bits((bits & 0x000fffffffffffff) | 0x3ff0000000000000);
    // An integer below 2^52 in the low bits of 2^52 is 2^52 plus that integer.
    exponent = of_bits((bits >> 52) | 0x4330000000000000) - 0x1p52 - (tiny ? VectorD{} + (1023 + 54) : VectorD{} + 1023);
  }
};

static inline VectorD log_ratio(VectorD x, VectorD y) {
  constexpr double sqrt2 = 0x1.6a09e667f3bcdp+0, ln2_high = 0x1.62e42feep-1, ln2_low = 0x1.a39ef35793c76p-33;
  constexpr double p0 = 0x1.5555555555558p-1, p1 = 0x1.9999999995273p-2, p2 = 0x1.2492492dfd86cp-2, p3 = 0x1.c71c62d5e53e0p-3,
                   p4 = 0x1.7462b91b8df65p-3, p5 = 0x1.39fdcceb4bb45p-3, p6 = 0x1.2b5f68a50d903p-3;
  const Split of_x(x), of_y(y);
  const IntegersD large = of_x.mantissa > sqrt2 * of_y.mantissa, small = of_y.mantissa > sqrt2 * of_x.mantissa;
  const VectorD a = small ? 2 * of_x.mantissa : of_x.mantissa, b = large ? 2 * of_y.mantissa : of_y.mantissa;
  const VectorD k = of_x.exponent - of_y.exponent + (large ? VectorD{} + 1 : VectorD{}) - (small ? VectorD{} + 1 : VectorD{});
  const VectorD t = (a - b) / (a + b), z = t * t;
  const VectorD p = p0 + z * (p1 + z * (p2 + z * (p3 + z * (p4 + z * (p5 + z * p6)))));
  return k * ln2_high + (2 * t + (k * ln2_low + t * z * p));
}

static inline VectorD exp_minus(VectorD t) {
  constexpr double log2e = 0x1.71547652b82fep+0, ln2_high = 0x1.62e42feep-1, ln2_low = 0x1.a39ef35793c76p-33;
  constexpr double q0 = 0x1p-1, q1 = 0x1.5555555555556p-3, q2 = 0x1.5555555553d63p-5, q3 = 0x1.11111111109b3p-7,
                   q4 = 0x1.6c16c1788bd90p-10, q5 = 0x1.a01a01a7c41d5p-13, q6 = 0x1.a019b90d2ae7ap-16, q7 = 0x1.71de0dae63bb3p-19,
                   q8 = 0x1.289185613a3d6p-22, q9 = 0x1.af38a9b0ec855p-26;
  constexpr double to_integer = 0x1.8p52;  // adding it rounds to an integer, which is then in the low bits
  t = t < 708 ? t : VectorD{} + 708;
  const VectorD shifted = t * log2e + to_integer;
  const VectorD k = shifted - to_integer;
  const VectorD r = (k * ln2_high - t) + k * ln2_low;
  const VectorD r2 = r * r, r4 = r2 * r2;
  const VectorD low = (q0 + r * q1) + r2 * (q2 + r * q3), middle = (q4 + r * q5) + r2 * (q6 + r * q7);
  const VectorD q = low + r4 * (middle + r4 * (q8 + r * q9));
  // 2^-k, in arithmetic modulo 2^64: the shift leaves k alone of `shifted`.
  const BitsD exponent = (BitsD{} + 0x3ff0000000000000) - (reinterpret_cast<BitsD>(shifted) << 52);
  const VectorD scale = reinterpret_cast<VectorD>(exponent);
  return scale * (1 + (r + r2 * q));
}
