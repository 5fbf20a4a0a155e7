// Small matrices in groups, one to a lane: Householder bidiagonalization (bidiagonal.inl) and dqds (dqds_lanes.inl) where every
// scalar is a register of `lanes` of them, from as many matrices.
//
// A matrix of order 32 is too short for registers along its rows: the reflectors are a chain of scalars, and every row ends in a
// half-empty register. Across matrices there are no remainders and no sums over a register, and the coefficients of a tile's rows
// and columns stay in registers:
//   pass 1  A <- A - v w^T - y u^T,  sum <- A^T v_next    4 columns, all rows: 12 multiply-adds for 7 loads and 4 stores
//   pass 2  A u                                           8 rows, all columns
// Arithmetic is in double (svdvals.inl says why). The matrices of one register take lanes x m x n x 8 bytes: L1 up to order 27
// with AVX-512, then L2, which bounds both passes (8 columns in pass 1 change nothing).
//
// Lanes never mix, so a matrix gets the same bits in any lane, beside any neighbours. A matrix with a NaN or an infinity is
// replaced by zeros.
//
// Ladder, microseconds a matrix, float32, one thread, AMD Zen 5, AVX-512 (load + bidiagonal + values):
//                                                              8 x 8                  32 x 32               64 x 64
//   one matrix a thread                                        5.4                    23                    85
//   lanes, dqds with all masks in every row                    0.02 + 0.07 + 0.25     0.3 + 1.3 + 2.6       1.2 + 12.2 + 9.3
//   + rows without masks, guard off the chain                  0.02 + 0.07 + 0.21     0.3 + 1.4 + 1.8       1.2 + 12.4 + 5.8

struct GroupWorkspace {
  double* a;                        // m x ld entries, `lanes` each: those of one pack
  double *v, *y, *v_next, *y_next;  // m
  double *w, *u, *sum;              // n
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
    double** const rows[] = {&w, &u, &sum};
    for (double** row : rows) *row = arena.take<double>(n * lanes);
    double** const bidiagonals[] = {&d, &e, &dqds.q, &dqds.e, &dqds.q_next, &dqds.e_next, &dqds.lambda};
    for (double** b : bidiagonals) *b = arena.take<double>((n + 1) * all_lanes);
    one_d = arena.take<double>(n);
    one_e = arena.take<double>(n);
  }
};

// sum <- sum + x. Where the output is as wide as the arithmetic what is lost is put back (Kahan 1965): reflectors whose errors
// are common to all entries, and sums of equal terms, would make ones(64, 64) err 6 eps instead of 2.
template <bool compensated>
static inline void add(Reals& sum, Reals& lost, Reals x) {
  if constexpr (compensated) {
    const Reals term = x - lost, total = sum + term;
    lost = (total - sum) - term;
    sum = total;
  } else {
    sum += x;
  }
}

// x . y, in four running sums.
template <bool compensated>
static inline Reals lane_dot(const double* x, const double* y, int64_t n) {
  constexpr int64_t width = 4;
  Reals sum[width] = {}, lost[width] = {};
  for (int64_t i = 0; i < n; i += width) {
    for (int64_t c = 0; c < width; ++c) {
      if (i + c >= n) break;
      const Reals xi = Lane::load(x + (i + c) * lanes), yi = Lane::load(y + (i + c) * lanes);
      if constexpr (compensated)
        add<true>(sum[c], lost[c], xi * yi);
      else
        sum[c] += xi * yi;
    }
  }
  if constexpr (!compensated) return (sum[0] + sum[1]) + (sum[2] + sum[3]);
  for (int64_t c = 1; c < width; ++c) add<true>(sum[0], lost[0], sum[c] - lost[c]);
  return sum[0] - lost[0];
}

// H = I - v v^T / half, half = v^T v / 2.
template <bool compensated>
struct LaneReflector {
  Reals beta, half, tau;

  // In float64 a quotient, since the rounding of tau would be common to all entries.
  inline Reals scale(Reals x) const {
    if constexpr (compensated) return x / half;
    return x * tau;
  }
};

// x_0 .. x_{n-1}, n > 0 -> v, in place (householder.inl). In float64 v^T v is that of the rounded v: what scaling by 1 / (x_0 -
// beta) errs is common to all of v too, and would leave H less orthogonal.
template <bool compensated>
static inline LaneReflector<compensated> make_lane_reflector(double* x, int64_t n) {
  const Reals zero{}, one = zero + 1.0;
  const Reals x0 = Lane::load(x), rest_squared = lane_dot<compensated>(x + lanes, x + lanes, n - 1);
  const Masks none = rest_squared < negligible_squared<double>;
  const Reals norm = square_root(x0 * x0 + rest_squared);
  const Reals beta = x0 < zero ? norm : -norm, inverse = none ? zero : one / (none ? one : x0 - beta);
  Lane::store(x, one);
  for (int64_t i = 1; i < n; ++i) Lane::store(x + i * lanes, Lane::load(x + i * lanes) * inverse);
  if constexpr (compensated) {
    const Reals half = 0.5 * lane_dot<true>(x, x, n);
    return {none ? x0 : beta, none ? zero + __builtin_inf() : half, zero};
  }
  const Reals tau = (beta - x0) / (none ? one : beta);
  return {none ? x0 : beta, zero, none ? zero : tau};
}

// Terms in a plain running sum, before it goes into the compensated one.
template <bool compensated>
static constexpr int64_t lane_block = compensated ? 8 : 64;

// Pass 1 on `width` columns of rows first .. m.
template <int width, bool compensated, bool pending>
static inline void lane_update_and_multiply(const GroupWorkspace& ws, int64_t first, int64_t m, int64_t j) {
  Reals w[width], u[width], total[width], lost[width];
  for (int c = 0; c < width; ++c) {
    w[c] = Lane::load(ws.w + (j + c) * lanes), u[c] = Lane::load(ws.u + (j + c) * lanes);
    total[c] = lost[c] = Reals{};
  }
  for (int64_t block = first; block < m; block += lane_block<compensated>) {
    const int64_t end = block + lane_block<compensated> < m ? block + lane_block<compensated> : m;
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
    for (int c = 0; c < width; ++c) add<compensated>(total[c], lost[c], sum[c]);
  }
  for (int c = 0; c < width; ++c) Lane::store(ws.sum + (j + c) * lanes, total[c]);
}

template <bool compensated, bool pending>
static inline void lane_pass1(const GroupWorkspace& ws, int64_t first, int64_t m, int64_t j, int64_t n) {
  for (; j + 4 <= n; j += 4) lane_update_and_multiply<4, compensated, pending>(ws, first, m, j);
  if (n - j == 3) lane_update_and_multiply<3, compensated, pending>(ws, first, m, j);
  if (n - j == 2) lane_update_and_multiply<2, compensated, pending>(ws, first, m, j);
  if (n - j == 1) lane_update_and_multiply<1, compensated, pending>(ws, first, m, j);
}

// Pass 2 on `height` rows: y_i <- tau (a_i . u - v_i wu).
template <int height, bool compensated>
static inline void lane_multiply_rows(const GroupWorkspace& ws, int64_t i, int64_t from, int64_t n, Reals wu,
                                      const LaneReflector<compensated>& right) {
  Reals total[height] = {};
  const double* const a = ws.a + i * ws.ld * lanes;
  for (int64_t block = from; block < n; block += lane_block<compensated>) {
    const int64_t end = block + lane_block<compensated> < n ? block + lane_block<compensated> : n;
    Reals sum[height] = {};
    for (int64_t j = block; j < end; ++j) {
      const Reals u = Lane::load(ws.u + j * lanes);
      for (int r = 0; r < height; ++r) sum[r] += Lane::load(a + (r * ws.ld + j) * lanes) * u;
    }
    for (int r = 0; r < height; ++r) total[r] += sum[r];
  }
  for (int r = 0; r < height; ++r) {
    const Reals rest = total[r] - Lane::load(ws.v_next + (i + r) * lanes) * wu;
    Lane::store(ws.y_next + (i + r) * lanes, right.scale(rest));
  }
}

template <bool compensated>
static inline void lane_pass2(const GroupWorkspace& ws, int64_t i, int64_t m, int64_t from, int64_t n, Reals wu,
                              const LaneReflector<compensated>& right) {
  for (; i + 8 <= m; i += 8) lane_multiply_rows<8, compensated>(ws, i, from, n, wu, right);
  if (i + 4 <= m) lane_multiply_rows<4, compensated>(ws, i, from, n, wu, right), i += 4;
  if (i + 2 <= m) lane_multiply_rows<2, compensated>(ws, i, from, n, wu, right), i += 2;
  if (i < m) lane_multiply_rows<1, compensated>(ws, i, from, n, wu, right);
}

// ws.a -> d, e (stride all_lanes): bidiagonalize() on `lanes` matrices at once.
template <bool compensated>
static void bidiagonalize_lanes(GroupWorkspace ws, int64_t m, int64_t n, double* d, double* e) {
  for (int64_t k = 0; k < n; ++k) {
    for (int64_t i = k; i < m; ++i) {
      Reals x = Lane::load(ws.a + (i * ws.ld + k) * lanes);
      if (k > 0) {
        x -= Lane::load(ws.v + i * lanes) * Lane::load(ws.w + k * lanes);
        x -= Lane::load(ws.y + i * lanes) * Lane::load(ws.u + k * lanes);
      }
      Lane::store(ws.v_next + i * lanes, x);
    }
    const LaneReflector<compensated> left = make_lane_reflector<compensated>(ws.v_next + k * lanes, m - k);
    Lane::store(d + k * all_lanes, left.beta);
    if (k + 1 == n) break;

    if (k == 0)
      lane_pass1<compensated, false>(ws, k, m, k + 1, n);
    else
      lane_pass1<compensated, true>(ws, k, m, k + 1, n);
    for (int64_t j = k + 1; j < n; ++j) {
      const Reals w = left.scale(Lane::load(ws.sum + j * lanes));
      Lane::store(ws.w + j * lanes, w);
      Lane::store(ws.u + j * lanes, Lane::load(ws.a + (k * ws.ld + j) * lanes) - w);
    }

    const LaneReflector<compensated> right = make_lane_reflector<compensated>(ws.u + (k + 1) * lanes, n - k - 1);
    Lane::store(e + k * all_lanes, right.beta);
    const Reals wu = lane_dot<compensated>(ws.w + (k + 1) * lanes, ws.u + (k + 1) * lanes, n - k - 1);
    lane_pass2<compensated>(ws, k + 1, m, k + 1, n, wu, right);

    double* swap = ws.v;
    ws.v = ws.v_next;
    ws.v_next = swap;
    swap = ws.y;
    ws.y = ws.y_next;
    ws.y_next = swap;
  }
}

// Eigenvalues of B^T B, n x all_lanes -> their square roots, descending in each lane.
static inline void sorted_roots(double* lambda, int64_t n) {
  for (int64_t l = 0; l < all_lanes; ++l) {
    // dqds leaves the smallest at the end, save for blocks that split: nearly sorted.
    for (int64_t i = 1; i < n; ++i) {
      const double x = lambda[i * all_lanes + l];
      int64_t j = i;
      for (; j > 0 && lambda[(j - 1) * all_lanes + l] < x; --j) lambda[j * all_lanes + l] = lambda[(j - 1) * all_lanes + l];
      lambda[j * all_lanes + l] = x;
    }
  }
  for (int64_t i = 0; i < n * all_lanes; i += lanes) {
    const Reals x = Lane::load(lambda + i);
    Lane::store(lambda + i, square_root(x < zero_pivot * 0x1p10 ? Reals{} : x));
  }
}

template <typename Element, typename Scalar>
static void svdvals_group_of(const MatrixView* matrices, int64_t count, Scalar* values, int32_t* info, void* workspace) {
  TallView tall[all_lanes];
  for (int64_t i = 0; i < count; ++i) tall[i] = tall_view(matrices[i]);
  const int64_t m = tall[0].m, n = tall[0].n;
  Arena arena{static_cast<char*>(workspace), 0};
  const GroupWorkspace ws(arena, m, n);
  constexpr bool compensated = sizeof(Scalar) == sizeof(double);

  LaneScales scales[packs];
  for (int64_t r = 0; r < packs; ++r) {
    double *const d = ws.d + r * lanes, *const e = ws.e + r * lanes;
    if (r * lanes < count) {
      const int64_t rest = count - r * lanes;
      scales[r] = load_lanes<Element>(tall + r * lanes, rest < lanes ? rest : lanes, ws.a, ws.ld);
      bidiagonalize_lanes<compensated>(ws, m, n, d, e);
    } else {
      for (int64_t i = 0; i < n; ++i) Lane::store(d + i * all_lanes, Reals{}), Lane::store(e + i * all_lanes, Reals{});
    }
    Lane::store(e + (n - 1) * all_lanes, Reals{});
    Lane::store(d + n * all_lanes, Reals{}), Lane::store(e + n * all_lanes, Reals{});
  }
  for (int64_t i = 0; i < (n + 1) * all_lanes; i += lanes) {
    const Reals d = Lane::load(ws.d + i), e = Lane::load(ws.e + i);
    Lane::store(ws.dqds.q + i, d * d), Lane::store(ws.dqds.e + i, e * e);
    Lane::store(ws.dqds.q_next + i, Reals{}), Lane::store(ws.dqds.e_next + i, Reals{});
  }
  const uint64_t unfinished = dqds_lanes<Scalar>(ws.dqds, n);
  double* const sigma = ws.dqds.lambda;
  sorted_roots(sigma, n);
  if constexpr (compensated)
    for (int64_t first = 0; first < count; first += lanes)
      refine_lanes(ws.d + first, ws.e + first, n, ws.dqds.q + first, ws.dqds.e + first, sigma + first);

  for (int64_t i = 0; i < count; ++i, values += n) {
    const LaneScales& scale = scales[i / lanes];
    const int exponent = -scale.exponent[i % lanes];
    info[i] = scale.finite[i % lanes] ? info_ok : info_nonfinite;
    if (!scale.finite[i % lanes]) {
      for (int64_t j = 0; j < n; ++j) values[j] = static_cast<Scalar>(__builtin_nan(""));
    } else if (unfinished >> i & 1) {
      for (int64_t j = 0; j < n; ++j) ws.one_d[j] = ws.d[j * all_lanes + i], ws.one_e[j] = ws.e[j * all_lanes + i];
      bidiagonal_values(ws.values, ws.one_d, ws.one_e, n, exponent, values, Team{1, nullptr, nullptr, nullptr});
    } else {
      for (int64_t j = 0; j < n; ++j) {
        const double value = sigma[j * all_lanes + i];
        values[j] = static_cast<Scalar>(exponent == 0 ? value : __builtin_ldexp(value, exponent));
      }
    }
  }
}

template <typename Scalar>
static int64_t group_size(int64_t rows, int64_t cols, int64_t batch) {
  const TallView a = tall_view(MatrixView{nullptr, ElementType::float32, rows, cols, 0, 0});
  if (!grouped(a.m, a.n, batch)) return 1;
  // Short batches in smaller pieces, for several threads.
  return batch >= 4 * all_lanes ? all_lanes : lanes;
}

template <typename Scalar>
static std::size_t group_workspace_bytes(int64_t rows, int64_t cols) {
  const TallView a = tall_view(MatrixView{nullptr, ElementType::float32, rows, cols, 0, 0});
  Arena arena{nullptr, 0};
  GroupWorkspace(arena, a.m, a.n);
  return arena.used;
}

static void svdvals_group_float32(const MatrixView* matrices, int64_t count, float* values, int32_t* info, void* workspace) {
  switch (matrices[0].element) {
    case ElementType::float16: svdvals_group_of<Float16>(matrices, count, values, info, workspace); break;
    case ElementType::bfloat16: svdvals_group_of<BFloat16>(matrices, count, values, info, workspace); break;
    default: svdvals_group_of<Float32>(matrices, count, values, info, workspace);
  }
}

static void svdvals_group_float64(const MatrixView* matrices, int64_t count, double* values, int32_t* info, void* workspace) {
  svdvals_group_of<Float64>(matrices, count, values, info, workspace);
}
