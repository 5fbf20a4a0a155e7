// Stage `bidiagonal`: upper triangular band of width b = 32 -> upper bidiagonal with the same singular values, by bulge chasing
// with Householder reflectors (Lang 1996; Haidar, Kurzak, Luszczek 2013), as csrc/cpu/bidiagonal.inl:
//
// Sweep i clears row i right of the superdiagonal with a reflector v on b columns. What that fills in below the diagonal is
// chased down the band, b rows a step. Step p works on two b x b windows, D at (k, k) and E at (k, k + b), k = i + 1 + p b:
//
//   D <- D (I - tau v v^T);   u from the first column of D;   D <- (I - tau u u^T) D
//   E <- (I - tau u u^T) E;   v from the first row of E;      E <- E (I - tau v v^T)
//
// Only the first column and the first row of a bulge are cleared: the rest is in the next sweep's windows, one row further.
//
// Shapes: band B x band_size(n) -> d, e B x n. A step is 8 b^2 FMAs and loads and stores 2 b^2 numbers; there are n^2 / 2b. In
// double on sm_90 a step is 1060 instructions of a warp, 370 of them on the double pipe (185 cycles of an SM) and 96 shuffles;
// 16 KiB each way between registers and caches (290 cycles at 64 bytes a cycle) are the longest of it. Counted, not measured.
//
// Every entry is rounded some 4 n times. With Wide = float that comes to 1 eps sigma_1 on a Gaussian matrix and 2 on half a
// rank, n = 256 to 1536, and to 10 at n = 768 where a value is repeated n / 2 times.
//
// One block of threads a matrix, one warp a sweep in flight. Step p of sweep i needs step p + 1 of sweep i - 1 and nothing
// later, so each sweep starts two ticks after the one before, a tick being one step of every sweep in flight:
//
//   W warps take the sweeps in groups of W. Sweep w of a group starts 2 w ticks after its group, and the next group
//   max(2 W, steps of the group's first sweep) ticks after it: by then warp w is through with its sweep. So there are
//   2 (W - 1) + sum over groups of max(2 W, steps) ticks: 2 n while n <= 64 W, and n^2 / (2 b W) far above that. More than
//   n / 64 warps have nothing to do.
//
// Within a tick the warps are independent. A step reads and writes the rows k .. k + b - 1 (the first also row i, which is done
// with). Where sweep i is at step p, sweep j > i is at step q <= p - 2 (j - i) or before its first; its last row,
// j + b + q b <= i + 1 + p b - (2 b - 1) (j - i) + b - 1, is above row k of sweep i. So one barrier a tick is enough.
#include "kernels.h"

// What a step holds in registers limits the warps of a block: 168 each for 12 warps, 128 for 16.
constexpr int max_warps = sizeof(Wide) == sizeof(double) ? 12 : 16;
constexpr int max_threads = max_warps * warp_size;

// A warp holds a window as two half warps, one above the other: lane 16 h + c has the columns c and c + 16 of the rows
// 16 h .. 16 h + 15. Sums along a row are over 16 lanes and sums along a column over two, 17 exchanges for both; with a column a
// lane it would be 31. A half warp's loads are contiguous.
constexpr int half = block / 2;

// A number for each row of a window, in shared memory; the halves in different banks.
constexpr int padded_half = half + 4;
constexpr int vector_size = 2 * padded_half;

struct Shared {  // of a warp
  Wide column[vector_size], y[vector_size], u[vector_size];
};

struct alignas(16) Quad {
  Wide at[16 / sizeof(Wide)];
};

// The entries k .. of a half of a vector that is in shared memory: one load instead of two or four.
template <typename Use>
__device__ inline void for_rows(const Wide* values, Use use) {
  constexpr int width = 16 / sizeof(Wide);
#pragma unroll
  for (int k = 0; k < half; k += width) {
    const Quad quad = *reinterpret_cast<const Quad*>(values + k);
#pragma unroll
    for (int l = 0; l < width; ++l) use(k + l, quad.at[l]);
  }
}

struct Lane {
  int number, column;  // of the warp's lanes, and of the half's
  int vector;          // where in a vector its row is
  int rows;            // where in a vector its half is
};

// I - tau v v^T, or the identity. v = (x - beta e_1) / |x| but for rounding: no division is on the way to it, and |v_0| is in
// [1, 2], tau in [1/2, 1].
struct Reflector {
  Wide beta, first, inverse, tau;  // v_0 = first, v_i = x_i * inverse
};

// Entries whose squares may underflow are dropped: a norm of few digits would make an H that is not orthogonal, which then is
// applied to large columns. In float, squares below 2^-126 are zeros; 31 of them in a sum of 2^-96 change it by 2^-25.
constexpr Wide negligible_squared = sizeof(Wide) == sizeof(double) ? 0x1p-900 : 0x1p-96;

// (x_0, rest) -> (beta, 0 ...)
__device__ inline Reflector make_reflector(Wide x0, Wide rest_squared) {
  if (rest_squared < negligible_squared) return {x0, 1, 0, 0};
  const Wide square = fma(x0, x0, rest_squared), inverse = rsqrt(square), root = square * inverse;
  // |x| rounded once: a root of a rounded sum is too small near one, so equal values would shrink together. The first difference
  // is exact where the rest is the larger part.
  const Wide lost = fma(x0, x0, rest_squared - square) + fma(-root, root, square);
  const Wide norm = fma(lost, inverse / 2, root);
  // |x| inverse, which is not quite one, is (1 + root inverse) / 2 to first order.
  const Wide first = copysign(fma(fabs(x0), inverse, fma(root, inverse / 2, Wide(0.5))), x0);
  // tau = 2 / |v|^2, for v as it was rounded: an H that is not orthogonal would stretch equal values apart.
  return {-copysign(norm, x0), first, inverse, 2 / fma(first, first, rest_squared * inverse * inverse)};
}

// The sum over the lanes that differ in the bits below `lanes`; the same bits in each.
template <int lanes>
__device__ inline Wide sum_lanes(Wide x) {
#pragma unroll
  for (int mask = lanes / 2; mask > 0; mask /= 2) x += __shfl_xor_sync(all_lanes, x, mask);
  return x;
}

// sums[k] of row k over the lanes of a half -> sums[0] of the lane's row: at each exchange a lane gives away half of its sums.
template <int width>
__device__ inline void sum_columns(Wide* sums, int lane) {
  const bool upper = lane & width;
#pragma unroll
  for (int k = 0; k < width; ++k) {
    const Wide kept = upper ? sums[k + width] : sums[k], given = upper ? sums[k] : sums[k + width];
    sums[k] = kept + __shfl_xor_sync(all_lanes, given, width);
  }
  if constexpr (width > 1) sum_columns<width / 2>(sums, lane);
}

struct Window {
  Wide x[half][2];

  __device__ inline void load(const Wide* band) {
#pragma unroll
    for (int k = 0; k < half; ++k) {
      x[k][0] = band[k * band_stride];
      x[k][1] = band[k * band_stride + half];
    }
  }

  __device__ inline void store(Wide* band) const {
#pragma unroll
    for (int k = 0; k < half; ++k) {
      band[k * band_stride] = x[k][0];
      band[k * band_stride + half] = x[k][1];
    }
  }

  // X v, the entry of row l in lane l.
  __device__ inline Wide times(const Wide* v, const Lane& lane) const {
    Wide sums[half];
#pragma unroll
    for (int k = 0; k < half; ++k) sums[k] = fma(x[k][1], v[1], x[k][0] * v[0]);
    sum_columns<half / 2>(sums, lane.number);
    return sums[0];
  }

  // X <- X - y v^T
  __device__ inline void subtract(const Wide* y, const Wide* v) {
    for_rows(y, [&](int k, Wide y_k) {
      x[k][0] = fma(-y_k, v[0], x[k][0]);
      x[k][1] = fma(-y_k, v[1], x[k][1]);
    });
  }

  // X <- (I - tau u u^T) X
  __device__ inline void apply_left(const Wide* u, Wide tau) {
    Wide z[2][2] = {};  // two sums a column: the chain of additions is the time
    for_rows(u, [&](int k, Wide u_k) {
      z[k % 2][0] = fma(u_k, x[k][0], z[k % 2][0]);
      z[k % 2][1] = fma(u_k, x[k][1], z[k % 2][1]);
    });
    Wide sum[2];
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const Wide part = z[0][c] + z[1][c];
      sum[c] = tau * (part + __shfl_xor_sync(all_lanes, part, half));
    }
    for_rows(u, [&](int k, Wide u_k) {
      x[k][0] = fma(-u_k, sum[0], x[k][0]);
      x[k][1] = fma(-u_k, sum[1], x[k][1]);
    });
  }
};

// The reflector that is a sweep's from one step to the next: of each lane, its two columns.
struct Right {
  Wide v[2];
  Wide beta, tau;

  // From the lane's two entries of a row.
  __device__ inline void make(Wide x0, Wide x1, const Lane& lane) {
    const bool first = lane.column == 0;
    const Wide rest = first ? Wide(0) : x0;
    const Reflector h = make_reflector(__shfl_sync(all_lanes, x0, 0), sum_lanes<half>(fma(x1, x1, rest * rest)));
    v[0] = first ? h.first : x0 * h.inverse;
    v[1] = x1 * h.inverse;
    beta = h.beta;
    tau = h.tau;
  }
};

// One step: D and E in place, `right` from this step's to the next. Returns the entry that is left of the first column of D.
__device__ inline Wide chase_step(Wide* window, Right& right, Shared& shared, const Lane& lane) {
  Window d, e;
  d.load(window);
  if (lane.column == 0) {
#pragma unroll
    for (int k = 0; k < half; ++k) shared.column[lane.rows + k] = d.x[k][0];
  }
  const Wide first = __shfl_sync(all_lanes, right.v[0], 0), y = right.tau * d.times(right.v, lane);
  shared.y[lane.vector] = y;
  __syncwarp();
  const Wide x = fma(-y, first, shared.column[lane.vector]);
  d.subtract(shared.y + lane.rows, right.v);

  const Reflector left = make_reflector(__shfl_sync(all_lanes, x, 0), sum_lanes<warp_size>(lane.number == 0 ? Wide(0) : x * x));
  shared.u[lane.vector] = lane.number == 0 ? left.first : x * left.inverse;
  __syncwarp();
  d.apply_left(shared.u + lane.rows, left.tau);
  if (lane.column == 0) {
#pragma unroll
    for (int k = 0; k < half; ++k) d.x[k][0] = k == 0 && lane.number == 0 ? left.beta : Wide(0);
  }
  d.store(window);

  e.load(window + block);
  e.apply_left(shared.u + lane.rows, left.tau);
  right.make(__shfl_sync(all_lanes, e.x[0][0], lane.column), __shfl_sync(all_lanes, e.x[0][1], lane.column), lane);
  shared.y[lane.vector] = right.tau * e.times(right.v, lane);
  __syncwarp();
  e.subtract(shared.y + lane.rows, right.v);
  if (lane.number < half) {
    e.x[0][0] = lane.number == 0 ? right.beta : Wide(0);
    e.x[0][1] = 0;
  }
  e.store(window + block);
  return left.beta;
}

// The ticks from the start of the group of sweeps that begins with `first` to that of the next.
__device__ inline long long group_ticks(long long first, long long n, int warps) {
  const long long steps = (n - 2 - first) / block + 1;
  return steps > 2 * warps ? steps : 2 * warps;
}

// band -> d, e; band is overwritten. Grid: B. Threads: 32 W, W <= max_warps. Shared: W * sizeof(Shared).
extern "C" __global__ void __launch_bounds__(max_threads) chase(Wide* band, long long n, Wide* d, Wide* e) {
  const int warp = threadIdx.x / warp_size, warps = blockDim.x / warp_size, number = threadIdx.x % warp_size;
  const int column = number % half, rows = number / half * padded_half;
  const Lane lane = {number, column, rows + column, rows};
  Shared& shared = static_cast<Shared*>(shared_memory())[warp];
  band += blockIdx.x * band_size(n);
  // Found anew where they are written, once a sweep: registers are short.
  const auto d_at = [&](long long i) -> Wide& { return d[blockIdx.x * n + i]; };
  const auto e_at = [&](long long i) -> Wide& { return e[blockIdx.x * n + i]; };
  if (threadIdx.x == 0) {
    d_at(0) = band[block - 1];
    e_at(n - 1) = 0;
  }

  long long ticks = 2 * (warps - 1);
  for (long long first = 0; first < n - 1; first += warps) ticks += group_ticks(first, n, warps);

  Right right = {};
  long long sweep = warp, step = -2 * warp;
  for (long long tick = 0; tick < ticks; ++tick) {
    const long long row = sweep + 1 + step * block;
    if (step >= 0 && row < n) {
      Wide* const at = band + row * band_stride + block - 1 + column;
      if (step == 0) {
        right.make(at[row - band_stride], at[row - band_stride + half], lane);
        if (number == 0) e_at(sweep) = right.beta;
      }
      const Wide beta = chase_step(at + row + number / half * half * band_stride, right, shared, lane);
      if (step == 0 && number == 0) d_at(row) = beta;
    }
    if (++step == group_ticks(sweep - warp, n, warps)) {
      step = 0;
      sweep += warps;
    }
    __syncthreads();
  }
}

// The diagonals 0 .. b of the first n rows and columns of each matrix, row i of it at a + i ld, into band; zero elsewhere.
// Grid: (n + b + 1, B), a block of threads for what lies between the diagonals of two rows. Threads: 3 b.
extern "C" __global__ void __launch_bounds__(3 * block)
    pack_band(const Scalar* a, long long a_matrix, long long ld, long long n, Wide* band) {
  const long long row = blockIdx.x, place = row * (band_stride + 1) + threadIdx.x, column = row + threadIdx.x - (block - 1);
  if (place >= band_size(n)) return;
  const bool inside = row < n && column >= row && column <= row + block && column < n;
  band[blockIdx.y * band_size(n) + place] = inside ? static_cast<Wide>(a[blockIdx.y * a_matrix + row * ld + column]) : Wide(0);
}
