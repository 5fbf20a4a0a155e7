// The contract of the CUDA kernels, and what they share. One file a stage, named as in csrc/cpu; spectral_fast/cuda compiles
// them at run time for the chip that is there and launches them.
//
// Nothing but CUDA: no standard header, no library. Every argument of a kernel is a pointer or a long long. The only shared
// memory is dynamic, `shared_memory()`: its size is the launch's to give.
//
// Types, fixed when a file is compiled: Scalar, that of the matrix and of its values; Wide, in which the small, sequential stages
// calculate: double, or float where the chip's double is slow and Scalar is float.
//
// Layout, for a batch of B matrices m x n, m >= n, padded with zeros to rows x cols, multiples of `block`, b:
//
//   a          B x rows x cols, row by row, Scalar. Scaled by a power of two so that the largest entry is in [1, 2).
//   left       B x rows x 2 b, Scalar: V and Y side by side. Row i belongs to row i of a.
//   right      B x 2 b x cols, Scalar: W above V2^T. Column j belongs to column j of a.
//   t          B x b x b, Scalar: the triangle of I - V T V^T.
//   band       B x band_size(n), Wide: the diagonals -(b - 1) .. 2 b - 1, row by row, so that a window of it is a dense matrix.
//   d, e       B x n, Wide: the bidiagonal; the last entry of a row of e is zero.
//
//   panel          a block of b columns (or rows) -> its triangle, V, T                 a block of threads a matrix
//   panel_scratch  the same where its rows do not fit into shared memory
//   pack_band      a -> band                                                            a block of threads a row
//   chase          band -> d, e                                                         a block of threads a matrix
//   direct         a (n <= 64) -> d, e                                                  a block of threads a matrix
//   squares, count_grid, bisect, finish       d, e -> values                            (values.cu)
//
// None fails and none looks at another block of threads. A matrix has the same bits in any batch.
#pragma once

typedef SF_SCALAR Scalar;
typedef SF_WIDE Wide;

constexpr int block = 32;  // columns of a panel; a warp has a lane for each
constexpr int warp_size = 32;
constexpr unsigned all_lanes = 0xffffffffu;

constexpr int band_stride = 3 * block - 1;  // of a window's rows

// Element (i, j) is at i * band_stride + j + block - 1. Rows n .. n + block are zero: windows reach there.
__host__ __device__ constexpr long long band_size(long long n) { return (n + block) * (band_stride + 1) + 2 * block; }

#ifndef SF_EMULATED
extern __shared__ __align__(16) unsigned char sf_shared_memory[];
__device__ inline void* shared_memory() { return sf_shared_memory; }
#endif
