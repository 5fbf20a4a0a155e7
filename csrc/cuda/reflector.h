// An elementary reflector H = I - tau v v^T, v_0 = 1, with H x = (beta, 0, ..., 0)^T (LAPACK xLARFG, Golub & Van Loan 5.1):
//
//   beta = -sign(x_0) |x|,   v = x inverse below the first entry, inverse = 1 / (x_0 - beta),   tau = 2 / |v|^2
//
// What H must be is orthogonal: an error of tau stretches every column that H is applied to, and reaches the values undiminished,
// where one of `inverse` leaves a rounding in the one column x. So tau is made from the `inverse` that v is scaled with, rounded
// as it is, and from the sum of squares in Wide. Its excess over one is kept: |x_0| / |x| about, so that tau y = y + excess y has
// a finer tau than a number near one can.
#pragma once

// Smaller sums of squares count as zero, and the entries are dropped: the largest entry of the matrix is at least one, so a
// column of 2^-40 is 2^-16 of a unit in float32. Above it the squares that are flushed to zero, fewer than 2^17 below 2^-126, are
// 2^-29 of the sum (a norm that missed some would make an H that is not orthogonal, and it is applied to large columns), and
// products with 1 / x stay in range. In double the smallest numbers are far from everything.
constexpr Wide negligible_squared = Wide(sizeof(Scalar) == sizeof(float) ? 0x1p-80 : 0x1p-900);

// A sum, and where Wide has no digits to spare what its roundings lost (Ogita, Rump, Oishi 2005). An error of |x|^2 is one of
// tau, and one of T reaches every column as well.
struct Sum {
  Wide sum = 0, lost = 0;

  __device__ Wide value() const { return sum + lost; }
  __device__ void add(const Sum& x) {
    const Wide total = sum + x.sum;
    if constexpr (sizeof(Wide) == sizeof(Scalar)) {
      const Wide part = total - sum;
      lost += ((sum - (total - part)) + (x.sum - part)) + x.lost;
    }
    sum = total;
  }
};

// Exact where both are Scalars.
__device__ inline Sum product(Wide x, Wide y) {
  if constexpr (sizeof(Wide) > sizeof(Scalar)) return {x * y, 0};
  const Wide rounded = x * y;
  return {rounded, fma(x, y, -rounded)};
}

// T: the type of v.
template <typename T>
struct Reflector {
  T beta, excess, inverse;  // tau = 1 + excess
};

template <typename T>
__device__ inline Reflector<T> make_reflector(T x0, const Sum& rest) {
  if (rest.sum < negligible_squared) return {x0, T(-1), T(0)};
  const T norm = sqrt(T(fma(Wide(x0), Wide(x0), rest.sum)));
  const T beta = -copysign(norm, x0);
  const T inverse = T(1) / (x0 - beta);
  const Sum square = product(inverse, inverse);
  Sum below = product(rest.sum, square.sum);  // |v|^2 - 1
  below.lost += fma(rest.sum, square.lost, rest.lost * square.sum);
  return {beta, T((1 - below.sum) - below.lost) / T(1 + below.sum), inverse};
}
