// The two products that the blocked stages are made of; every flop of `reduce` and `band` that counts is spent here.
//
//   update_strip     A <- A - V W [- Y Z],  sum <- U^T A       one read and one write of A
//   multiply_strips  Y <- Y + A U                              one read of A
//
// V, Y, U have `block` columns and are stored row by row; W, Z, sum have `block` rows and are stored in strips as A is.
//
// update_strip keeps a tile of A (8 x 48 in float32 with AVX-512) in registers for 2 or 3 times `block` fused multiply-adds an
// entry: it reads a row of W once for 8 rows and a coefficient of V once for 3 registers, 11 loads for 24 multiply-adds, and two
// of each are possible a cycle. multiply_strips has one load for each multiply-add: a coefficient of A, broadcast.
//
// What is taken from A is summed first: A is rounded once a pass, not once for each column of V and Y (one_huge_entry, 1024 x
// 335, float32: 5 eps sigma_1 before, 1 since).
//
// Sums over rows are taken in blocks, and the blocks are summed: one running sum would lose sqrt(rows) units.

static constexpr int64_t update_sum_rows = 64;  // a part of a strip is added up in the first level cache: free at this size

// rank: how many pending products (0, 1: V W, 2: V W + Y Z). w, z, part: rows of strip_columns.
template <int tile_rows, int vectors, int rank, bool multiply, typename T>
static inline __attribute__((always_inline)) void update_tile(T* a, const T* v, const T* w, const T* y, const T* z, const T* u,
                                                              T* part) {
  typedef Simd<T> S;
  typedef typename S::Vector V;
  constexpr int b = Blocks<T>::block, ld = Blocks<T>::strip_columns;
  V x[tile_rows][vectors] = {};  // what is taken from A, then A
  if constexpr (rank >= 1) {
    for (int k = 0; k < b; ++k) {
      V row[vectors];
      SF_UNROLL
      for (int c = 0; c < vectors; ++c) row[c] = S::load(w + k * ld + c * S::lanes);
      SF_UNROLL
      for (int r = 0; r < tile_rows; ++r) {
        SF_UNROLL
        for (int c = 0; c < vectors; ++c) x[r][c] += v[r * b + k] * row[c];
      }
    }
  }
  if constexpr (rank >= 2) {
    for (int k = 0; k < b; ++k) {
      V row[vectors];
      SF_UNROLL
      for (int c = 0; c < vectors; ++c) row[c] = S::load(z + k * ld + c * S::lanes);
      SF_UNROLL
      for (int r = 0; r < tile_rows; ++r) {
        SF_UNROLL
        for (int c = 0; c < vectors; ++c) x[r][c] += y[r * b + k] * row[c];
      }
    }
  }
  SF_UNROLL
  for (int r = 0; r < tile_rows; ++r) {
    SF_UNROLL
    for (int c = 0; c < vectors; ++c) {
      T* const to = a + r * ld + c * S::lanes;
      x[r][c] = S::load(to) - x[r][c];
      if constexpr (rank >= 1) S::store(to, x[r][c]);
    }
  }
  if constexpr (multiply) {
    for (int p = 0; p < b; ++p) {
      V sum[vectors];
      SF_UNROLL
      for (int c = 0; c < vectors; ++c) sum[c] = S::load(part + p * ld + c * S::lanes);
      SF_UNROLL
      for (int r = 0; r < tile_rows; ++r) {
        SF_UNROLL
        for (int c = 0; c < vectors; ++c) sum[c] += u[r * b + p] * x[r][c];
      }
      SF_UNROLL
      for (int c = 0; c < vectors; ++c) S::store(part + p * ld + c * S::lanes, sum[c]);
    }
  }
}

template <int vectors, int rank, bool multiply, typename T>
static void update_strip_of(T* a, int64_t rows, const T* v, const T* w, const T* y, const T* z, const T* u, T* sum) {
  typedef Simd<T> S;
  constexpr int b = Blocks<T>::block, ld = Blocks<T>::strip_columns, tile_rows = Blocks<T>::tile_rows;
  alignas(64) T part[b * ld];
  if (multiply)
    for (int p = 0; p < b; ++p)
      for (int c = 0; c < vectors; ++c) S::store(sum + p * ld + c * S::lanes, typename S::Vector{});
  for (int64_t first = 0; first < rows; first += update_sum_rows) {
    const int64_t last = first + update_sum_rows < rows ? first + update_sum_rows : rows;
    if (multiply)
      for (int i = 0; i < b * ld; i += S::lanes) S::store(part + i, typename S::Vector{});
    int64_t i = first;
    for (; i + tile_rows <= last; i += tile_rows)
      update_tile<tile_rows, vectors, rank, multiply>(a + i * ld, v + i * b, w, y + i * b, z, u + i * b, part);
    for (; i < last; ++i) update_tile<1, vectors, rank, multiply>(a + i * ld, v + i * b, w, y + i * b, z, u + i * b, part);
    if (multiply)
      for (int p = 0; p < b; ++p)
        for (int c = 0; c < vectors; ++c) {
          T* const s = sum + p * ld + c * S::lanes;
          S::store(s, S::load(s) + S::load(part + p * ld + c * S::lanes));
        }
  }
}

// `vectors` registers of columns of one strip; all pointers at the first of these columns or at the first row.
template <int rank, bool multiply, typename T>
static void update_strip(int vectors, T* a, int64_t rows, const T* v, const T* w, const T* y, const T* z, const T* u, T* sum) {
  switch (vectors) {
    case 1: return update_strip_of<1, rank, multiply>(a, rows, v, w, y, z, u, sum);
    case 2: return update_strip_of<2, rank, multiply>(a, rows, v, w, y, z, u, sum);
    default: return update_strip_of<3, rank, multiply>(a, rows, v, w, y, z, u, sum);
  }
}

// `ahead`: the tile that comes next, in another strip, where no hardware prefetcher expects it (2048 x 1056 float32: 195 GF/s
// instead of 145).
template <int tile_rows, typename T>
static inline __attribute__((always_inline)) void multiply_tile(const T* a, int64_t cols, const T* u, T* y, const T* ahead) {
  typedef Simd<T> S;
  constexpr int b = Blocks<T>::block, ld = Blocks<T>::strip_columns, vectors = Blocks<T>::vectors;
  constexpr int line = 64 / sizeof(T);  // a line a column fetches 16 of the 24 rows of the next tile
  typename S::Vector sum[tile_rows][vectors] = {};
  for (int64_t j = 0; j < cols; ++j) {
    typename S::Vector row[vectors];
    SF_UNROLL
    for (int c = 0; c < vectors; ++c) row[c] = S::load(u + j * b + c * S::lanes);
    __builtin_prefetch(ahead + j * line);
    SF_UNROLL
    for (int r = 0; r < tile_rows; ++r) {
      SF_UNROLL
      for (int c = 0; c < vectors; ++c) sum[r][c] += a[r * ld + j] * row[c];
    }
  }
  SF_UNROLL
  for (int r = 0; r < tile_rows; ++r) {
    SF_UNROLL
    for (int c = 0; c < vectors; ++c) {
      T* const to = y + r * b + c * S::lanes;
      S::store(to, S::load(to) + sum[r][c]);
    }
  }
}

// y (rows x block) += rows first .. first + rows, columns from .. to of `a`, times u, whose first row belongs to column `from`.
template <typename T>
static void multiply_strips(const Strips<T>& a, int64_t first, int64_t rows, int64_t from, int64_t to, const T* u, T* y) {
  constexpr int b = Blocks<T>::block, ld = Blocks<T>::strip_columns;
  constexpr int registers = SF_VECTOR_BYTES == 64 ? 24 : 12;
  constexpr int tile_rows = registers / Blocks<T>::vectors;
  for (int64_t i = 0; i < rows;) {
    const int64_t step = i + tile_rows <= rows ? tile_rows : i + 4 <= rows ? 4 : 1;
    for (int64_t j = from; j < to;) {
      const int64_t end = round_down(j, ld) + ld < to ? round_down(j, ld) + ld : to;
      const T* const tile = a.at(first + i, j);
      const T* const rows_of_u = u + (j - from) * b;
      const T* const ahead = end < to ? a.at(first + i, end) : tile;
      if (step == tile_rows)
        multiply_tile<tile_rows>(tile, end - j, rows_of_u, y + i * b, ahead);
      else if (step == 4)
        multiply_tile<4>(tile, end - j, rows_of_u, y + i * b, ahead);
      else
        multiply_tile<1>(tile, end - j, rows_of_u, y + i * b, ahead);
      j = end;
    }
    i += step;
  }
}
