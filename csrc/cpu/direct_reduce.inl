// Stage `reduce` of small float64 matrices: tall m x n -> n x n upper triangle R, a column at a time (Householder QR), with the
// reflectors of householder.inl that are precise. (In blocks it errs by up to 3.5 eps sigma_1 where all columns are equal.)
//
// Chunks of rows are folded into the triangle as in reduce.inl:
//
//   [R; C] -> [R'; 0],  one reflector a column, u = (u_0, c_k) with a single entry in R:
//   w = (u_0 R_k + c_k^T C) / h,   R_k <- R_k - u_0 w,   C <- C - c_k w
//
// 2 m n^2 flops. The update of a column is fused with the product of the next: one read and one write of the chunk a column.

// Half the smallest second-level cache in use (256 KiB on Intel's client cores up to 2019), and no fewer than 64 rows, so that
// the row of R that every column touches stays a small part of the work.
static inline int64_t direct_chunk_rows(int64_t m, int64_t row_bytes) {
  int64_t rows = (128 << 10) / row_bytes;
  rows = rows < 64 ? 64 : rows;
  return rows < m ? rows : m;
}

struct DirectReduceWorkspace {
  double* r;                  // n x ld
  double* chunk;              // chunk_rows x ld
  double* w;                  // ld: of the pending update
  double *sum, *lost, *part;  // ld: c_k^T C = sum - lost
  double *v, *v_next;         // chunk_rows
  int64_t chunk_rows, ld;
};

// Folds `rows` rows of ws.chunk into ws.r.
static void direct_fold(const DirectReduceWorkspace& ws, int64_t rows, int64_t n) {
  double *v = ws.v, *v_next = ws.v_next;
  for (int64_t i = 0; i < rows; ++i) v[i] = 0;
  for (int64_t j = 0; j < ws.ld; ++j) ws.w[j] = 0;

  for (int64_t k = 0; k < n; ++k) {
    for (int64_t i = 0; i < rows; ++i) v_next[i] = ws.chunk[i * ws.ld + k] - v[i] * ws.w[k];
    double* r = ws.r + k * ws.ld;
    // Entries up to column k of w are zero, so a start on a register boundary leaves what lies before k+1 as it is.
    ws.w[k] = 0;
    const int64_t from = round_down(k + 1, SimdD::lanes);
    const PreciseReflector h = make_precise_reflector({r[k], 0}, precise_dot(v_next, v_next, rows));
    update_and_multiply<1, true>(ws.chunk, ws.ld, 0, rows, from, RankOne{v, ws.w}, RankOne{}, v_next, ws.sum, ws.lost, ws.part);
    r[k] = h.beta;
    for (int64_t j = k + 1; j < n; ++j) {
      ws.w[j] = rounded((h.first * r[j] + Pair{ws.sum[j], -ws.lost[j]}) * h.inverse);
      r[j] = rounded(Pair{r[j], 0} - h.first * ws.w[j]);
    }
    double* swap = v;
    v = v_next;
    v_next = swap;
  }
}
