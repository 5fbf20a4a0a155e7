// The two passes over a group of matrices that each step of the bidiagonalization makes (direct.inl), a register an entry:
//
//   pass 1  A <- A - v w^T - y u^T,  sum <- A^T v_next    4 columns, all rows: 12 multiply-adds for 7 loads and 4 stores
//   pass 2  A u                                           8 rows, all columns
//
// The coefficients of a tile's rows and columns stay in registers. The matrices of one register take lanes x m x n x 8 bytes: L1
// up to order 27 with AVX-512, then L2, which bounds both passes (8 columns in pass 1 change nothing).

struct GroupWorkspace {
  double* a;                        // m x ld entries, `lanes` each: those of one pack
  double *v, *y, *v_next, *y_next;  // m
  double *w, *u, *sum, *lost;       // n; A^T v_next = sum - lost
  double *d, *e;                    // (n + 1) x all_lanes
  DqdsLanes dqds;
  ValuesWorkspace values;
  double *one_d, *one_e;  // n: the bidiagonal of one lane
  int64_t ld;

  GroupWorkspace(Arena& arena, int64_t m, int64_t n) : values(arena, n) {
    ld = n < 8 ? n : n | 1;  // an even number of entries would map a column to few cache sets
    a = arena.take<double>(m * ld * lanes);
    double** const cols[] = {&v, &y, &v_next, &y_next};
    for (double** col : cols) *col = arena.take<double>(m * lanes);
    double** const rows[] = {&w, &u, &sum, &lost};
    for (double** row : rows) *row = arena.take<double>(n * lanes);
    double** const bidiagonals[] = {&d, &e, &dqds.q, &dqds.e, &dqds.q_next, &dqds.e_next, &dqds.lambda};
    for (double** b : bidiagonals) *b = arena.take<double>((n + 1) * all_lanes);
    one_d = arena.take<double>(n);
    one_e = arena.take<double>(n);
  }

  // The reflectors just made are those of the pending update.
  void next() {
    double* swap = v;
    v = v_next;
    v_next = swap;
    swap = y;
    y = y_next;
    y_next = swap;
  }
};

// sum <- sum + x, and what that loses (Kahan 1965): a sum of equal terms errs in one direction.
static inline void add_compensated(Reals& sum, Reals& lost, Reals x) {
  const Reals term = x - lost, total = sum + term;
  lost = (total - sum) - term;
  sum = total;
}

// Terms in a running sum, before it is added to the sum of these.
template <bool precise>
static constexpr int64_t lane_block = precise ? 8 : 64;

// Pass 1 on `width` columns of rows first .. m.
template <int width, bool precise, bool pending>
static inline void lane_update_and_multiply(const GroupWorkspace& ws, int64_t first, int64_t m, int64_t j) {
  Reals w[width], u[width], total[width], lost[width];
  for (int c = 0; c < width; ++c) {
    w[c] = Lane::load(ws.w + (j + c) * lanes), u[c] = Lane::load(ws.u + (j + c) * lanes);
    total[c] = lost[c] = Reals{};
  }
  for (int64_t block = first; block < m; block += lane_block<precise>) {
    const int64_t end = block + lane_block<precise> < m ? block + lane_block<precise> : m;
    Reals sum[width] = {};
    for (int64_t i = block; i < end; ++i) {
      const Reals v = Lane::load(ws.v + i * lanes), y = Lane::load(ws.y + i * lanes), next = Lane::load(ws.v_next + i * lanes);
      double* const a = ws.a + (i * ws.ld + j) * lanes;
      for (int c = 0; c < width; ++c) {
        Reals x = Lane::load(a + c * lanes);
        if constexpr (pending) {
          x -= v * w[c];
          x -= y * u[c];
          Lane::store(a + c * lanes, x);
        }
        sum[c] += next * x;
      }
    }
    for (int c = 0; c < width; ++c) {
      if constexpr (precise)
        add_compensated(total[c], lost[c], sum[c]);
      else
        total[c] += sum[c];
    }
  }
  for (int c = 0; c < width; ++c) {
    Lane::store(ws.sum + (j + c) * lanes, total[c]);
    if constexpr (precise) Lane::store(ws.lost + (j + c) * lanes, lost[c]);
  }
}

template <bool precise, bool pending>
static inline void lane_pass1(const GroupWorkspace& ws, int64_t first, int64_t m, int64_t j, int64_t n) {
  for (; j + 4 <= n; j += 4) lane_update_and_multiply<4, precise, pending>(ws, first, m, j);
  if (n - j == 3) lane_update_and_multiply<3, precise, pending>(ws, first, m, j);
  if (n - j == 2) lane_update_and_multiply<2, precise, pending>(ws, first, m, j);
  if (n - j == 1) lane_update_and_multiply<1, precise, pending>(ws, first, m, j);
}

// Pass 2 on `height` rows: use(i, a_i . u).
template <int height, bool precise, typename Use>
static inline void lane_multiply_rows(const GroupWorkspace& ws, int64_t i, int64_t from, int64_t n, const Use& use) {
  Reals total[height] = {};
  const double* const a = ws.a + i * ws.ld * lanes;
  for (int64_t block = from; block < n; block += lane_block<precise>) {
    const int64_t end = block + lane_block<precise> < n ? block + lane_block<precise> : n;
    Reals sum[height] = {};
    for (int64_t j = block; j < end; ++j) {
      const Reals u = Lane::load(ws.u + j * lanes);
      for (int r = 0; r < height; ++r) sum[r] += Lane::load(a + (r * ws.ld + j) * lanes) * u;
    }
    for (int r = 0; r < height; ++r) total[r] += sum[r];
  }
  for (int r = 0; r < height; ++r) use(i + r, total[r]);
}

template <bool precise, typename Use>
static inline void lane_pass2(const GroupWorkspace& ws, int64_t i, int64_t m, int64_t from, int64_t n, const Use& use) {
  for (; i + 8 <= m; i += 8) lane_multiply_rows<8, precise>(ws, i, from, n, use);
  if (i + 4 <= m) lane_multiply_rows<4, precise>(ws, i, from, n, use), i += 4;
  if (i + 2 <= m) lane_multiply_rows<2, precise>(ws, i, from, n, use), i += 2;
  if (i < m) lane_multiply_rows<1, precise>(ws, i, from, n, use);
}
