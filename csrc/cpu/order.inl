// The order of the columns of a small float64 matrix.

static inline bool is_bidiagonal(const TallView& a) {
  const double* const data = static_cast<const double*>(a.data);
  for (int64_t i = 0; i < a.m; ++i)
    for (int64_t j = 0; j < a.n; ++j)
      if (j != i && j != i + 1 && data[i * a.row_stride + j * a.col_stride] != 0) return false;
  return true;
}

// Columns in the order in which they lose least, those with large entries first: an entry that carries the largest value alone
// is rounded once by each reflector made before its own. By powers of four, so that ordinary matrices stay as they are. A
// bidiagonal matrix stays too: no reflector touches it, and its small values keep their digits. largest: n, scratch. False if the
// order is the one they have.
static bool order_columns(const TallView& a, const Scale<double>& scale, double* largest, int64_t* order) {
  const double* const data = static_cast<const double*>(a.data);
  for (int64_t j = 0; j < a.n; ++j) largest[j] = 0;
  const bool by_rows = a.col_stride == 1;
  const int64_t outer = by_rows ? a.m : a.n, inner = by_rows ? a.n : a.m;
  for (int64_t o = 0; o < outer; ++o) {
    const double* const p = data + o * (by_rows ? a.row_stride : a.col_stride);
    if (by_rows) {
      for (int64_t j = 0; j < inner; ++j) {
        const double x = __builtin_fabs(p[j]);
        largest[j] = largest[j] < x ? x : largest[j];
      }
    } else {
      double most = 0;
      for (int64_t i = 0; i < inner; ++i) {
        const double x = __builtin_fabs(p[i * a.row_stride]);
        most = most < x ? x : most;
      }
      largest[o] = most;
    }
  }
  // Insertion sort of the powers of four, the largest being 0, with zero columns last.
  bool moved = false;
  for (int64_t j = 0; j < a.n; ++j) {
    const double x = scale(largest[j]), steps = x > 0 ? __builtin_ilogb(x) / 2 : -2048;
    int64_t i = j;
    for (; i > 0 && largest[i - 1] < steps; --i) largest[i] = largest[i - 1], order[i] = order[i - 1];
    largest[i] = steps, order[i] = j;
    moved |= i != j;
  }
  return moved && !is_bidiagonal(a);
}

// work: `count` rows, ld apart, of entries that are `stride` apart. row: n, scratch.
static void reorder_columns(double* work, int64_t count, int64_t n, int64_t ld, int64_t stride, const int64_t* order,
                            double* row) {
  for (int64_t i = 0; i < count; ++i, work += ld) {
    for (int64_t j = 0; j < n; ++j) row[j] = work[j * stride];
    for (int64_t j = 0; j < n; ++j) work[j * stride] = row[order[j]];
  }
}
