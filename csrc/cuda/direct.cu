// Stage `direct`: a small matrix, n <= 64, n <= m <= 128 -> bidiagonal, a column and a row at a time (Golub and Kahan 1965), in
// Wide and in shared memory.
//
// Step k clears column k below the diagonal, then row k right of the superdiagonal, each by a reflector of the pivot x,
//
//   H = I - u u^T / h,   u = (x_0 - beta, x_1, x_2, ...),   h = |beta| |x_0 - beta|,   beta = -sign(x_0) |x|,   H x = (beta, 0,
//   ...)^T,
//
// with x as it is (csrc/cpu/householder.inl). A thread has a column for a left reflector and a row for a right one: it forms its
// own product with u, and |x| too, from the pivot that all read together; nothing is reduced over threads, and pivots are never
// written. The one thing to wait for is that columns are finished before they are read as rows, and rows before columns: a
// barrier a reflector. The leading dimension is odd, so that neither columns nor rows collide in the banks.
//
// An error of beta, u_0 or h is common to a whole reflector, so it reaches the values undiminished, where the roundings of single
// entries cancel at random. If Scalar is as wide as Wide they are calculated in twice the digits: errors of
// 0.7 eps sigma_1 instead of 1.6 (n = 64, columns of falling norm), and 2 eps is kept where it was not.
//
// Cost of a matrix: 4 m n^2 - 4/3 n^3 flops; for 4 of them 2 reads and a write of shared memory, and 2 reads of one address by
// all: bound by shared memory. 12 more operations an entry of the pivot, in every thread, for twice the digits.
//
// Launch: grid (B), threads m rounded up to a warp, shared memory m ((n + 1) | 1) sizeof(Wide) bytes.
#include "kernels.h"

constexpr bool precise = sizeof(Scalar) == sizeof(Wide);

// Of entries near one. The squares of smaller ones are subnormal, and a norm of few digits would make an H that is not
// orthogonal.
constexpr Wide negligible_squared = sizeof(Wide) == sizeof(float) ? 0x1p-100 : 0x1p-900;

// hi + lo.
struct Pair {
  Wide hi, lo;
};

__device__ inline Pair exact_sum(Wide a, Wide b) {
  const Wide sum = a + b, other = sum - a;
  return {sum, (a - (sum - other)) + (b - other)};
}

__device__ inline Pair exact_product(Wide a, Wide b) {
  // Not a * b: the compiler would fuse it with a sum it is used in.
  const Wide product = fma(a, b, Wide(0));
  return {product, fma(a, b, -product)};
}

__device__ inline Pair normalized(Pair a) { return exact_sum(a.hi, a.lo); }

// u_0 and 1 / h: their lo is zero unless `precise`.
struct Reflector {
  Wide beta;
  Pair first, inverse;
};

__device__ inline Reflector make_reflector(Wide x0, Pair rest_squared) {
  if constexpr (precise) {
    const Pair square = exact_product(x0, x0), sum = exact_sum(square.hi, rest_squared.hi);
    const Wide lost = sum.lo + (square.lo + rest_squared.lo), root = sqrt(sum.hi);
    const Pair norm = exact_sum(root, (fma(-root, root, sum.hi) + lost) / (2 * root));
    const Wide sign = -copysign(Wide(1), x0);
    const Pair beta = {sign * norm.hi, sign * norm.lo}, difference = exact_sum(x0, -beta.hi);
    const Pair first = normalized({difference.hi, difference.lo - beta.lo});
    const Pair product = exact_product(first.hi, -beta.hi);
    const Pair h = normalized({product.hi, product.lo - first.hi * beta.lo - first.lo * beta.hi});
    const Wide inverse = 1 / h.hi;
    return {beta.hi, first, {inverse, fma(-h.lo, inverse, fma(-h.hi, inverse, Wide(1))) * inverse}};
  } else {
    const Wide beta = -copysign(sqrt(x0 * x0 + rest_squared.hi), x0), first = x0 - beta;
    return {beta, {first, 0}, {-1 / (beta * first), 0}};
  }
}

// y <- H y (size entries, `step` apart, as x's), H the reflector of x. Returns beta.
__device__ inline Wide reflect(const Wide* __restrict__ x, Wide* __restrict__ y, int step, int size) {
  Pair squared = {0, 0};
  Wide dot = 0;
#pragma unroll 4
  for (int i = 1; i < size; ++i) {
    const Wide xi = x[i * step];
    if constexpr (precise) {
      const Pair square = exact_product(xi, xi), sum = exact_sum(squared.hi, square.hi);
      squared = {sum.hi, squared.lo + (sum.lo + square.lo)};
    } else {
      squared.hi += xi * xi;
    }
    dot += xi * y[i * step];
  }
  if (!(squared.hi >= negligible_squared)) return x[0];
  const Reflector h = make_reflector(x[0], squared);
  const Wide y0 = y[0], product = h.first.hi * y0 + (dot + h.first.lo * y0);
  const Wide w = product * h.inverse.hi + product * h.inverse.lo;
  y[0] = y0 - h.first.hi * w - h.first.lo * w;
#pragma unroll 4
  for (int i = 1; i < size; ++i) y[i * step] -= x[i * step] * w;
  return h.beta;
}

// a: matrices a_matrix entries apart, rows ld apart, of entries below 2 -> d, e (B x n).
extern "C" __global__ void __launch_bounds__(128)
    direct(const Scalar* a, long long a_matrix, long long ld, long long m, long long n, Wide* d, Wide* e) {
  Wide* const own = static_cast<Wide*>(shared_memory());
  const long long matrix = blockIdx.x;
  // A column of zeros beside the last: the last reflector's product is formed with it.
  const int rows = static_cast<int>(m), cols = static_cast<int>(n), stride = (cols + 1) | 1;
  const int thread = threadIdx.x, lane = thread % warp_size, warps = blockDim.x / warp_size;
  a += matrix * a_matrix;
  d += matrix * n;
  e += matrix * n;
  for (int i = thread / warp_size; i < rows; i += warps)
    for (int j = lane; j < stride; j += warp_size) own[i * stride + j] = j < cols ? static_cast<Wide>(a[i * ld + j]) : 0;
  __syncthreads();

  for (int k = 0;; ++k) {
    const Wide* const column = own + k * stride + k;
    if (thread == 0 || k + 1 + thread < cols) {
      const Wide beta = reflect(column, own + k * stride + k + 1 + thread, stride, rows - k);
      if (thread == 0) d[k] = beta;
    }
    if (k + 1 == cols) break;
    __syncthreads();
    const Wide* const row = column + 1;
    if (k + 1 + thread < rows) {
      const Wide beta = reflect(row, own + (k + 1 + thread) * stride + k + 1, 1, cols - k - 1);
      if (thread == 0) e[k] = beta;
    }
    __syncthreads();
  }
  if (thread == 0) e[cols - 1] = 0;
}
