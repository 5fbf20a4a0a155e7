// Groups in float64: order_columns (order.inl) and bidiagonalize_precisely (direct.inl) on `lanes` matrices at once. Reflectors
// are exact to second order, since the output is as wide as the arithmetic: with ordinary ones 1 in 300 hard matrices up to 8 x 8
// missed the accuracy bound, by up to 1.7. They cost some 10 % from 8 x 8 to 64 x 64, 20 % at 500 x 16 and at 4 x 4.

static inline Pairs single(const double* p) { return {Lane::load(p), Reals{}}; }

static inline Pairs chosen(Masks where, Pairs x, Pairs y) { return {where ? x.hi : y.hi, where ? x.lo : y.lo}; }

// x . y
static inline Pairs precise_lane_dot(const double* x, const double* y, int64_t n) {
  Pairs even{}, odd{};
  int64_t i = 0;
  for (; i + 2 <= n; i += 2) {
    even = even + exact_product(Lane::load(x + i * lanes), Lane::load(y + i * lanes));
    odd = odd + exact_product(Lane::load(x + (i + 1) * lanes), Lane::load(y + (i + 1) * lanes));
  }
  if (i < n) even = even + exact_product(Lane::load(x + i * lanes), Lane::load(y + i * lanes));
  return normalized(even + odd);
}

// make_precise_reflector (householder.inl)
typedef PreciseReflectorOf<Reals> PreciseLaneReflector;
static inline PreciseLaneReflector make_precise_lane_reflector(Pairs x0, Pairs rest_squared) {
  const Reals zero{}, one = zero + 1.0;
  const Masks none = rest_squared.hi < negligible_squared<double>;
  const PreciseLaneReflector h = precise_reflector(x0, chosen(none, {one, zero}, normalized(x0 * x0 + rest_squared)));
  return {none ? rounded(x0) : h.beta, chosen(none, Pairs{}, h.first), chosen(none, Pairs{}, h.inverse)};
}

// ws.a -> d, e (stride all_lanes)
static void bidiagonalize_lanes_precisely(GroupWorkspace ws, int64_t m, int64_t n, double* d, double* e) {
  const Reals zero{};
  for (int64_t i = 0; i < m * lanes; i += lanes) Lane::store(ws.v + i, zero), Lane::store(ws.y + i, zero);
  for (int64_t j = 0; j < n * lanes; j += lanes) Lane::store(ws.w + j, zero), Lane::store(ws.u + j, zero);
  Reals w_first{};  // of column k
  Pairs u_first{};

  for (int64_t k = 0; k < n; ++k) {
    const auto entry = [&](int64_t i) {
      return single(ws.a + (i * ws.ld + k) * lanes) - exact_product(Lane::load(ws.v + i * lanes), w_first) -
             u_first * Lane::load(ws.y + i * lanes);
    };
    for (int64_t i = k + 1; i < m; ++i) Lane::store(ws.v_next + i * lanes, rounded(entry(i)));
    const double* below = ws.v_next + (k + 1) * lanes;
    const PreciseLaneReflector left =
        make_precise_lane_reflector(normalized(entry(k)), precise_lane_dot(below, below, m - k - 1));
    Lane::store(d + k * all_lanes, left.beta);
    if (k + 1 == n) break;

    if (k == 0)
      lane_pass1<true, false>(ws, k + 1, m, k + 1, n);
    else
      lane_pass1<true, true>(ws, k + 1, m, k + 1, n);
    const Reals v_k = Lane::load(ws.v + k * lanes), y_k = Lane::load(ws.y + k * lanes);
    for (int64_t j = k + 1; j < n; ++j) {
      double *const w = ws.w + j * lanes, *const u = ws.u + j * lanes;
      const Pairs x =
          single(ws.a + (k * ws.ld + j) * lanes) - exact_product(Lane::load(w), v_k) - exact_product(Lane::load(u), y_k);
      const Pairs sum = {Lane::load(ws.sum + j * lanes), -Lane::load(ws.lost + j * lanes)};
      const Reals w_j = rounded((x * left.first + sum) * left.inverse);
      Lane::store(w, w_j);
      Lane::store(u, rounded(x - left.first * w_j));
    }

    double *const w = ws.w + (k + 1) * lanes, *const u = ws.u + (k + 1) * lanes;
    const double *const beyond_w = w + lanes, *const beyond_u = u + lanes;
    const PreciseLaneReflector right = make_precise_lane_reflector(single(u), precise_lane_dot(beyond_u, beyond_u, n - k - 2));
    Lane::store(e + k * all_lanes, right.beta);
    w_first = Lane::load(w), u_first = right.first;
    const Pairs wu = normalized(precise_lane_dot(beyond_w, beyond_u, n - k - 2) + u_first * w_first);
    lane_pass2<true>(ws, k + 1, m, k + 2, n, [&](int64_t i, Reals sum) {
      const Pairs first = u_first * Lane::load(ws.a + (i * ws.ld + k + 1) * lanes);
      const Pairs y = first - wu * Lane::load(ws.v_next + i * lanes) + Pairs{sum, Reals{}};
      Lane::store(ws.y_next + i * lanes, rounded(y * right.inverse));
    });
    ws.next();
  }
}

// The columns of each matrix of ws.a in the order of order_columns. Most are in that order already, as one look at all lanes
// says.
static void order_lanes(const GroupWorkspace& ws, int64_t m, int64_t n) {
  Masks largest{}, moved{}, above{};
  for (int64_t j = 0; j < n; ++j) {
    Masks of_column{};
    for (int64_t i = 0; i < m; ++i) {
      const Reals x = Lane::load(ws.a + (i * ws.ld + j) * lanes);
      const Masks bits = reinterpret_cast<Masks>(x) & static_cast<int64_t>(Float64::magnitude);
      of_column = bits > of_column ? bits : of_column;
    }
    Lane::store(ws.sum + j * lanes, reinterpret_cast<Reals>(of_column));
    largest = of_column > largest ? of_column : largest;
  }
  for (int64_t j = 0; j < n; ++j) {
    const Masks of_column = reinterpret_cast<Masks>(Lane::load(ws.sum + j * lanes));
    const Masks steps = ((largest >> 52) - (of_column >> 52)) >> 1;  // powers of four below the largest
    moved |= steps < above;
    above = steps;
  }
  for (int64_t l = 0; l < lanes; ++l) {
    if (!moved[l]) continue;
    double scratch[grouped_size];
    int64_t order[grouped_size];
    const TallView lane{ws.a + l, m, n, ws.ld * lanes, lanes};
    const int exponent = scale_exponent(Float64::value(static_cast<uint64_t>(largest[l])));
    if (!order_columns(lane, Scale<double>::of(exponent), scratch, order)) continue;
    reorder_columns(ws.a + l, m, n, ws.ld * lanes, lanes, order, scratch);
  }
}
