// Householder QR of a panel of `block` columns, b, and the compact form of its product of reflectors
// (LAPACK xGEQRT; Schreiber and Van Loan 1989):
//
//   H_1 H_2 ... H_b = I - V T V^T,   T_jj = tau_j,   T_{0..j, j} = -tau_j T_{0..j, 0..j} V_{0..j}^T v_j
//
// Pass j over the panel does three things at once, as in csrc/cpu/panel.inl: the update by reflector j - 1, which has to wait for
// sums over whole columns; the products of column j with all others, which are those of the next update (on its right) and of T
// (on its left); and the square of its norm. Every warp needs column j after the pending update and makes it for itself out of
// column j before it, so that nobody waits for its owner: one barrier a column.
//
// Work: warp (g, h) has the columns 4 g .. 4 g + 3 and every second slice of 32 rows; lane l has row l of a slice. Reflector and
// column j are read once for four columns. The first `resident` rows are in registers; those below, the tail, in shared memory
// or, where that is too small, in scratch. A dot is summed in a lane, over the lanes, and, behind the barrier, over the two
// slices: the order depends on rows alone, not on where the tail is but for `resident`.
//
// Two of each buffer, by the parity of a column. In pass j
//   v, dots, top, norm   of j - 1 are read and those of j written. Those of j are read in pass j + 1, behind the barrier that
//   begins
//                        it; over those of j - 1 pass j + 1 writes, behind the same barrier.
//   raw                  column j is read; column j + 1 is written, by its owners, and column j - 1, in its place, is not read
//   again.
// In the tail raw columns are read in place: pass j does not write column j; its owners copy it from v in pass j + 1, when nobody
// else reads it. inverse, excess and gram are written once and read after the last pass.
//
//   panel          (a, a_matrix, a_row, a_col, rows, v, v_matrix, v_row, v_col, t)
//   panel_scratch  (the same, scratch)
//     grid (B, 1), 512 threads; matrix = blockIdx.x; rows >= b, a multiple of b
//     a        element (i, c) at matrix * a_matrix + i * a_row + c * a_col, rows x b, one stride 1. Out: R in the rows 0 .. b,
//     zeros
//              below its diagonal; the other rows stay
//     v        likewise, out: V, ones on the diagonal, zeros above
//     t        B x b x b, out: zeros below the diagonal
//     scratch  B x (b + 2) max(0, rows - 2048 / sizeof(Scalar)) Scalars
//     shared   panel          sizeof(Shared) + (b + 2) max(0, rows - 4096 / sizeof(Scalar)) sizeof(Scalar)
//              panel_scratch  sizeof(Shared), which is at most 16448 + 1280 sizeof(Scalar)
//
//   largest rows of panel     227 KB (sm_90, 100)   163 KB (sm_80)   99 KB (sm_86, 89, 120)
//     float                   2560                  2080             1600
//     double                  1248                  1024             768
//
// Cost: 4 rows b^2 flops; 3 rows b Scalars of global memory. A pass is bound by issue, 15 instructions a slice and four columns,
// in registers, by shared memory in a shared tail, which passes two and a half times, and by L2, which passes once each way, in
// scratch.
#include "kernels.h"
#include "reflector.h"

constexpr int threads = 512;  // 128 registers each; half of them hold rows, so that what a thread needs once is dear
constexpr int own = 4;        // columns of a warp
constexpr int warps = threads / warp_size;
constexpr int row_groups = warps / (block / own);  // warps that share columns: two
constexpr int tile = row_groups * warp_size;
constexpr int resident_bytes = 4096;     // of a column in registers
constexpr int stage_stride = block + 1;  // odd: no bank conflict along rows or columns

struct alignas(row_groups * sizeof(Scalar)) Parts {
  Scalar of[row_groups];
};

struct Passes {
  Parts dots[2][block];
  Sum norm[2][row_groups];
  Scalar v[2][resident_bytes / sizeof(Scalar)];    // column j after the update, zeros in the rows .. j
  Scalar raw[2][resident_bytes / sizeof(Scalar)];  // and before it
  Scalar top[2][block];                            // row j
};

struct Shared {
  Scalar inverse[block], excess[block];
  Scalar gram[block][block];  // V_c^T v_j at (c, j), c < j, over inverse[c]
  union {
    Passes passes;
    Scalar stage[tile * stage_stride];  // a tile while the panel is read and V is written
  };
};

struct Thread {
  int lane, g, h;
  __device__ bool owns(int column) const { return column / own == g; }
};

struct View {
  Scalar* data;
  long long matrix, row, col;
  __device__ Scalar& at(int i, int c) const { return data[blockIdx.x * matrix + i * row + c * col]; }
};

// The `own` elements of a tile that a thread moves between memory and stage: from (row, col) on in steps, lanes along the stride
// of one.
struct Moves {
  int row, col, row_step, col_step;
  __device__ explicit Moves(const View& of) {
    const int id = threadIdx.x;
    const bool by_rows = of.col == 1;
    row = by_rows ? id / block : id % tile, row_step = by_rows ? threads / block : 0;
    col = by_rows ? id % block : id / tile, col_step = by_rows ? 0 : threads / tile;
  }
};

// Writes the first `rows` rows of what `stage` gets from `element(k)`, an entry of the thread's row and its column k.
template <typename Element>
__device__ inline void write_tile(const Thread& me, const View& to, const Moves& move, int first, int rows, Scalar* stage,
                                  const Element& element) {
#pragma unroll
  for (int k = 0; k < own; ++k) stage[(me.h * warp_size + me.lane) * stage_stride + me.g * own + k] = element(k);
  __syncthreads();
#pragma unroll
  for (int n = 0; n < own; ++n) {
    const int i = move.row + n * move.row_step, c = move.col + n * move.col_step;
    if (first + i < rows) to.at(first + i, c) = stage[i * stage_stride + c];
  }
  __syncthreads();
}

// Sums over the warp of four numbers a lane: lanes 0, 8, 16 and 24 get those of x[0] .. x[3]. Six shuffles instead of twenty.
__device__ inline Scalar sums_of_four(int lane, const Scalar* x) {
  const bool upper = lane & 16, odd = lane & 8;
  Scalar half[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const Scalar sent = upper ? x[i] : x[i + 2];
    half[i] = (upper ? x[i + 2] : x[i]) + __shfl_xor_sync(all_lanes, sent, 16);
  }
  const Scalar sent = odd ? half[0] : half[1];
  Scalar sum = (odd ? half[1] : half[0]) + __shfl_xor_sync(all_lanes, sent, 8);
  for (int step = 4; step > 0; step /= 2) sum += __shfl_xor_sync(all_lanes, sum, step);
  return sum;
}

template <bool tail_is_shared>
__device__ inline void factor(const View& a, int rows, const View& v, const View& t, Scalar* scratch) {
  // Scratch is the second-level cache, some 300 cycles and 64 bytes a cycle away: 20 KB of loads have to be under way, and take
  // the registers of half the rows.
  constexpr int batch = tail_is_shared ? 1 : 16 / sizeof(Scalar);
  constexpr int resident = resident_bytes / sizeof(Scalar) / (tail_is_shared ? 1 : 2), tiles = resident / tile;
  Shared& s = *static_cast<Shared*>(shared_memory());
  const int warp = threadIdx.x / warp_size;
  const Thread me{static_cast<int>(threadIdx.x) % warp_size, warp / row_groups, warp % row_groups};
  const int row = me.h * warp_size + me.lane, col = me.g * own;
  const int tail_rows = rows > resident ? rows - resident : 0;
  Scalar* const tail =
      tail_is_shared ? reinterpret_cast<Scalar*>(&s + 1) : scratch + static_cast<long long>(blockIdx.x) * (block + 2) * tail_rows;
  Scalar* const tail_v = tail + block * tail_rows;
  const int slices = (rows - me.h * warp_size + tile - 1) / tile;  // of the rows that this warp has in registers and below
  const bool has_top = me.h == 0;                                  // the slice with the rows 0 .. b

  // Chunks of `resident` rows, the first of them last: it stays in y. All loads of a chunk are under way together.
  Scalar y[tiles][own];
  const Moves move(a);
  for (int first = (rows - 1) / resident * resident; first >= 0; first -= resident) {
#pragma unroll
    for (int q = 0; q < tiles; ++q) {
#pragma unroll
      for (int n = 0; n < own; ++n) {
        const int i = first + q * tile + move.row + n * move.row_step;
        y[q][n] = i < rows ? a.at(i, move.col + n * move.col_step) : Scalar(0);
      }
    }
#pragma unroll
    for (int q = 0; q < tiles; ++q) {
      if (first + q * tile >= rows) continue;
#pragma unroll
      for (int n = 0; n < own; ++n) {
        s.stage[(move.row + n * move.row_step) * stage_stride + move.col + n * move.col_step] = y[q][n];
      }
      __syncthreads();
#pragma unroll
      for (int k = 0; k < own; ++k) {
        y[q][k] = s.stage[row * stage_stride + col + k];
        const int i = first - resident + q * tile + row;
        if (first > 0 && i < tail_rows) tail[(col + k) * tail_rows + i] = y[q][k];
      }
      __syncthreads();
    }
  }

  if (me.owns(0)) {
#pragma unroll
    for (int q = 0; q < tiles; ++q) s.passes.raw[0][q * tile + row] = y[q][0];
  }
  for (int j = 0;; ++j) {
    __syncthreads();
    const int r = j - 1, now = j & 1, before = now ^ 1;
    Scalar w[own] = {}, w_pivot = 0;  // y <- y - w x_r, and in row r, where x is not v / inverse, less w / inverse
    if (j > 0) {
      Sum norm = s.passes.norm[before][0];
      norm.add(s.passes.norm[before][1]);
      const Reflector<Scalar> h = make_reflector(s.passes.top[before][r], norm);
      const auto dot_with_v = [&](int c) {
        const Parts dot = s.passes.dots[before][c];
        return fma(h.inverse, dot.of[0] + dot.of[1], s.passes.top[before][c]);
      };
#pragma unroll
      for (int k = 0; k < own; ++k) {
        const int c = col + k;
        const Scalar x = dot_with_v(c), update = c > r ? fma(x, h.excess, x) : Scalar(0);
        w[k] = update * h.inverse;
        if (has_top && me.lane == r) {
          if (c < r) s.gram[c][r] = x;
          y[0][k] = c == r ? h.beta : y[0][k] - update;
        }
      }
      if (threadIdx.x == 0) s.inverse[r] = h.inverse, s.excess[r] = h.excess;
      if (j == block) break;
      const Scalar x = dot_with_v(j);
      w_pivot = fma(x, h.excess, x) * h.inverse;
    }

    Scalar dot[own] = {};
    Sum norm;
#pragma unroll
    for (int q = 0; q < tiles; ++q) {
      if (q >= slices) continue;
      const int i = q * tile + row;
      const Scalar x_r = j > 0 ? s.passes.v[before][i] : Scalar(0);
      Scalar x = fma(-w_pivot, x_r, s.passes.raw[now][i]);
      if (q == 0 && has_top && me.lane <= j) x = 0;
#pragma unroll
      for (int k = 0; k < own; ++k) {
        y[q][k] = fma(-w[k], x_r, y[q][k]);
        dot[k] = fma(x, y[q][k], dot[k]);
      }
      if (me.owns(j)) {
        norm.add(product(x, x));
        s.passes.v[now][i] = x;
      }
      if (me.owns(j + 1)) {
#pragma unroll
        for (int k = 0; k < own; ++k)
          if (col + k == j + 1) s.passes.raw[before][i] = y[q][k];
      }
    }
#pragma unroll 1
    for (int next = row; next < tail_rows; next += batch * tile) {
      Scalar x_r[batch], raw[batch], z[batch][own];
#pragma unroll
      for (int n = 0; n < batch; ++n) {
        const int i = next + n * tile;
        if (i >= tail_rows) continue;
        x_r[n] = j > 0 ? tail_v[before * tail_rows + i] : Scalar(0);
        raw[n] = tail[j * tail_rows + i];
#pragma unroll
        for (int k = 0; k < own; ++k) z[n][k] = tail[(col + k) * tail_rows + i];
      }
#pragma unroll
      for (int n = 0; n < batch; ++n) {
        const int i = next + n * tile;
        if (i >= tail_rows) continue;
        const Scalar x = fma(-w_pivot, x_r[n], raw[n]);
#pragma unroll
        for (int k = 0; k < own; ++k) {
          const int c = col + k;
          const Scalar updated = c == r ? x_r[n] : fma(-w[k], x_r[n], z[n][k]);
          dot[k] = fma(x, updated, dot[k]);
          if (j > 0 && c >= r && c != j) tail[c * tail_rows + i] = updated;
        }
        if (me.owns(j)) {
          norm.add(product(x, x));
          tail_v[now * tail_rows + i] = x;
        }
      }
    }

    if (has_top && me.lane == j) {
#pragma unroll
      for (int k = 0; k < own; ++k) s.passes.top[now][col + k] = y[0][k];
    }
    const Scalar sum = sums_of_four(me.lane, dot);
    if (me.lane % 8 == 0) s.passes.dots[now][col + me.lane / 8].of[me.h] = sum;
    if (me.owns(j)) {
      for (int step = warp_size / 2; step > 0; step /= 2)
        norm.add({__shfl_xor_sync(all_lanes, norm.sum, step), __shfl_xor_sync(all_lanes, norm.lost, step)});
      if (me.lane == 0) s.passes.norm[now][me.h] = norm;
    }
  }
  __syncthreads();

  // T_{r, c} is known when the sum over the columns before c is; lane c has it, for the rows r = warp and warp + 16. It is
  // rounded as it is stored before it is used, so that later columns make up for that.
  constexpr int t_rows = block / warps;
  Scalar t_row[t_rows] = {};
  Sum sum[t_rows];
  const Wide excess = s.excess[me.lane];
  for (int c = warp; c < block; ++c) {
    const Sum gram = me.lane > c ? product(s.inverse[c], s.gram[c][me.lane]) : Sum{};
#pragma unroll
    for (int n = 0; n < t_rows; ++n) {
      if (me.lane == c) t_row[n] = c == warp + n * warps ? 1 + excess : Wide(0) - fma(sum[n].value(), excess, sum[n].value());
      const Wide factor = __shfl_sync(all_lanes, t_row[n], c);
      Sum term = product(factor, gram.sum);
      term.lost = fma(factor, gram.lost, term.lost);
      sum[n].add(term);
    }
  }
#pragma unroll
  for (int n = 0; n < t_rows; ++n) t.at(warp + n * warps, me.lane) = t_row[n];
  write_tile(me, a, Moves(a), 0, block, s.stage, [&](int k) { return row <= col + k ? y[0][k] : Scalar(0); });

  const Moves to_v(v);
  Scalar scale[own];
#pragma unroll
  for (int k = 0; k < own; ++k) scale[k] = s.inverse[col + k];
  for (int first = 0; first < rows; first += resident) {
    if (first > 0) {
#pragma unroll
      for (int k = 0; k < own; ++k) {
        const int c = col + k;  // column b - 1 is still where its own pass left it
        const Scalar* const x = c == block - 1 ? tail_v + (c & 1) * tail_rows : tail + c * tail_rows;
#pragma unroll
        for (int q = 0; q < tiles; ++q) {
          const int i = first - resident + q * tile + row;
          y[q][k] = i < tail_rows ? x[i] : Scalar(0);
        }
      }
    }
#pragma unroll
    for (int q = 0; q < tiles; ++q) {
      if (first + q * tile >= rows) continue;
      write_tile(me, v, to_v, first + q * tile, rows, s.stage, [&](int k) {
        const int below = first + q * tile + row - (col + k);
        return below > 0 ? y[q][k] * scale[k] : Scalar(below == 0);
      });
    }
  }
}

extern "C" __global__ void __launch_bounds__(threads)
    panel(Scalar* a, long long a_matrix, long long a_row, long long a_col, long long rows, Scalar* v, long long v_matrix,
          long long v_row, long long v_col, Scalar* t) {
  factor<true>({a, a_matrix, a_row, a_col}, static_cast<int>(rows), {v, v_matrix, v_row, v_col}, {t, block * block, block, 1},
               nullptr);
}

extern "C" __global__ void __launch_bounds__(threads)
    panel_scratch(Scalar* a, long long a_matrix, long long a_row, long long a_col, long long rows, Scalar* v, long long v_matrix,
                  long long v_row, long long v_col, Scalar* t, Scalar* scratch) {
  factor<false>({a, a_matrix, a_row, a_col}, static_cast<int>(rows), {v, v_matrix, v_row, v_col}, {t, block * block, block, 1},
                scratch);
}
