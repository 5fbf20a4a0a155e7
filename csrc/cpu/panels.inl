// Products of tall panels, rows `lda` and `ldb` apart, in registers of `bytes`. Counts of columns are multiples of `unit`; what
// is loaded by registers (b, c, r) starts on their boundaries.
//
// Tall panels are cut into pieces of `panel_rows` rows: sums of one piece in T, those of the pieces in double and in order, so
// that no bit depends on who computed them.

static constexpr int64_t panel_rows = 128;

template <typename T, int bytes = SF_VECTOR_BYTES>
struct Panels {
  typedef T V __attribute__((vector_size(bytes)));
  static constexpr int height = SF_VECTOR_BYTES == 64 ? 8 : 4;
  static constexpr int64_t lanes = bytes / sizeof(T), unit = lanes > height ? lanes : height;
  static constexpr int most_vectors = 2;

  static inline V load(const T* p) { return *reinterpret_cast<const V*>(p); }
  static inline void store(T* p, V v) { *reinterpret_cast<V*>(p) = v; }

  template <int vectors>
  static inline __attribute__((always_inline)) void inner_tile(const T* a, int64_t lda, const T* b, int64_t ldb, int64_t depth,
                                                               T* c, int64_t ldc) {
    V sum[height][vectors] = {};
    for (int64_t k = 0; k < depth; ++k) {
      SF_UNROLL
      for (int r = 0; r < height; ++r) {
        SF_UNROLL
        for (int v = 0; v < vectors; ++v) sum[r][v] += a[k * lda + r] * load(b + k * ldb + v * lanes);
      }
    }
    SF_UNROLL
    for (int r = 0; r < height; ++r) {
      SF_UNROLL
      for (int v = 0; v < vectors; ++v) store(c + r * ldc + v * lanes, sum[r][v]);
    }
  }

  // c (of_a x of_b) = a^T b over `depth` rows.
  static void inner(const T* a, int64_t lda, int64_t of_a, const T* b, int64_t ldb, int64_t of_b, int64_t depth, T* c,
                    int64_t ldc) {
    for (int64_t i = 0; i < of_a; i += height) {
      int64_t j = 0;
      for (; j + most_vectors * lanes <= of_b; j += most_vectors * lanes)
        inner_tile<most_vectors>(a + i, lda, b + j, ldb, depth, c + i * ldc + j, ldc);
      for (; j < of_b; j += lanes) inner_tile<1>(a + i, lda, b + j, ldb, depth, c + i * ldc + j, ldc);
    }
  }

  template <int rows, int vectors>
  static inline __attribute__((always_inline)) void update_tile(const T* q, int64_t ldq, const T* c, int64_t ldc, int64_t depth,
                                                                T* r, int64_t ldr) {
    V sum[rows][vectors];
    SF_UNROLL
    for (int i = 0; i < rows; ++i) {
      SF_UNROLL
      for (int v = 0; v < vectors; ++v) sum[i][v] = load(r + i * ldr + v * lanes);
    }
    for (int64_t k = 0; k < depth; ++k) {
      SF_UNROLL
      for (int i = 0; i < rows; ++i) {
        SF_UNROLL
        for (int v = 0; v < vectors; ++v) sum[i][v] += q[i * ldq + k] * load(c + k * ldc + v * lanes);
      }
    }
    SF_UNROLL
    for (int i = 0; i < rows; ++i) {
      SF_UNROLL
      for (int v = 0; v < vectors; ++v) store(r + i * ldr + v * lanes, sum[i][v]);
    }
  }

  template <int rows>
  static inline void update_rows(const T* q, int64_t ldq, const T* c, int64_t ldc, int64_t depth, int64_t cols, T* r,
                                 int64_t ldr) {
    int64_t j = 0;
    for (; j + most_vectors * lanes <= cols; j += most_vectors * lanes)
      update_tile<rows, most_vectors>(q, ldq, c + j, ldc, depth, r + j, ldr);
    for (; j < cols; j += lanes) update_tile<rows, 1>(q, ldq, c + j, ldc, depth, r + j, ldr);
  }

  // r (rows x cols) += q (rows x depth) c (depth x cols).
  static void update(const T* q, int64_t ldq, const T* c, int64_t ldc, int64_t depth, int64_t rows, int64_t cols, T* r,
                     int64_t ldr) {
    int64_t i = 0;
    for (; i + height <= rows; i += height) update_rows<height>(q + i * ldq, ldq, c, ldc, depth, cols, r + i * ldr, ldr);
    for (; i < rows; ++i) update_rows<1>(q + i * ldq, ldq, c, ldc, depth, cols, r + i * ldr, ldr);
  }
};
