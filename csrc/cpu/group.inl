// Small matrices in groups, one to a lane: Householder bidiagonalization (direct.inl) and dqds (dqds_lanes.inl) where every
// scalar is a register of `lanes` of them, from as many matrices.
//
// A matrix of order 32 is too short for registers along its rows: the reflectors are a chain of scalars, and every row ends in a
// half-empty register. Across matrices there are no remainders and no sums over a register.
// Arithmetic is in double (svdvals.inl says why); where the output is too, group_precise.inl has the reflectors.
//
// Lanes never mix, so a matrix gets the same bits in any lane, beside any neighbours. A matrix with a NaN or an infinity is
// replaced by zeros.
//
// Ladder, microseconds a matrix, float32, one thread, AMD Zen 5, AVX-512 (load + bidiagonal + values):
//                                                              8 x 8                  32 x 32               64 x 64
//   one matrix a thread                                        5.4                    23                    85
//   lanes, dqds with all masks in every row                    0.02 + 0.07 + 0.25     0.3 + 1.3 + 2.6       1.2 + 12.2 + 9.3
//   + rows without masks, guard off the chain                  0.02 + 0.07 + 0.21     0.3 + 1.4 + 1.8       1.2 + 12.4 + 5.8

// x . y, in four running sums.
static inline Reals lane_dot(const double* x, const double* y, int64_t n) {
  constexpr int64_t width = 4;
  Reals sum[width] = {};
  for (int64_t i = 0; i < n; i += width) {
    for (int64_t c = 0; c < width; ++c) {
      if (i + c >= n) break;
      sum[c] += Lane::load(x + (i + c) * lanes) * Lane::load(y + (i + c) * lanes);
    }
  }
  return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

// H = I - tau v v^T
struct LaneReflector {
  Reals beta, tau;
};

// x_0 .. x_{n-1}, n > 0 -> v, in place (householder.inl).
static inline LaneReflector make_lane_reflector(double* x, int64_t n) {
  const Reals zero{}, one = zero + 1.0;
  const Reals x0 = Lane::load(x), rest_squared = lane_dot(x + lanes, x + lanes, n - 1);
  const Masks none = rest_squared < negligible_squared<double>;
  const Reals norm = square_root(x0 * x0 + rest_squared);
  const Reals beta = x0 < zero ? norm : -norm, inverse = none ? zero : one / (none ? one : x0 - beta);
  Lane::store(x, one);
  for (int64_t i = 1; i < n; ++i) Lane::store(x + i * lanes, Lane::load(x + i * lanes) * inverse);
  const Reals tau = (beta - x0) / (none ? one : beta);
  return {none ? x0 : beta, none ? zero : tau};
}

// ws.a -> d, e (stride all_lanes): bidiagonalize_directly() on `lanes` matrices at once.
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
    const LaneReflector left = make_lane_reflector(ws.v_next + k * lanes, m - k);
    Lane::store(d + k * all_lanes, left.beta);
    if (k + 1 == n) break;

    if (k == 0)
      lane_pass1<false, false>(ws, k, m, k + 1, n);
    else
      lane_pass1<false, true>(ws, k, m, k + 1, n);
    for (int64_t j = k + 1; j < n; ++j) {
      const Reals w = left.tau * Lane::load(ws.sum + j * lanes);
      Lane::store(ws.w + j * lanes, w);
      Lane::store(ws.u + j * lanes, Lane::load(ws.a + (k * ws.ld + j) * lanes) - w);
    }

    const LaneReflector right = make_lane_reflector(ws.u + (k + 1) * lanes, n - k - 1);
    Lane::store(e + k * all_lanes, right.beta);
    const Reals wu = lane_dot(ws.w + (k + 1) * lanes, ws.u + (k + 1) * lanes, n - k - 1);
    lane_pass2<false>(ws, k + 1, m, k + 1, n, [&](int64_t i, Reals sum) {
      Lane::store(ws.y_next + i * lanes, right.tau * (sum - Lane::load(ws.v_next + i * lanes) * wu));
    });
    ws.next();
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
  constexpr bool precise = sizeof(Scalar) == sizeof(double);  // the output is as wide as the arithmetic

  LaneScales scales[packs];
  for (int64_t r = 0; r < packs; ++r) {
    double *const d = ws.d + r * lanes, *const e = ws.e + r * lanes;
    if (r * lanes < count) {
      const int64_t rest = count - r * lanes;
      scales[r] = load_lanes<Element>(tall + r * lanes, rest < lanes ? rest : lanes, ws.a, ws.ld);
      if constexpr (precise) {
        order_lanes(ws, m, n);
        bidiagonalize_lanes_precisely(ws, m, n, d, e);
      } else {
        bidiagonalize_lanes(ws, m, n, d, e);
      }
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
  if constexpr (precise)
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
