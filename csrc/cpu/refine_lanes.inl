// The values of dqds_lanes.inl to the last bit. A sweep rounds, and some 3 n of them leave errors of several units (7 eps sigma_1
// at n = 64). Where the output is as wide as the arithmetic they are mended: bisection on Sturm counts of the first bidiagonal
// (values.inl), from a bracket of 2^-46 either side to 2^-54. 8 n^2 divisions, `values_at_once` chains of them side by side.
//
// The brackets are of t in sigma (1 + t), counted at mu = sigma^2 (1 + 2 t), t^2 being below 2^-92: rounded squares are closer
// together than the squares of neighbouring doubles, between which a value would be up to a unit off.
//
// d, e: the bidiagonal, entries `all_lanes` apart. q, e2: n x all_lanes of workspace. sigma: descending, refined in place.
static void refine_lanes(const double* d, const double* e, int64_t n, double* q, double* e2, double* sigma) {
  constexpr int values_at_once = 4, steps = 8;
  const Reals zero{};
  // Brought to norm about one, so that no quotient of an entry and smallest_pivot overflows.
  Reals unit;
  for (int64_t l = 0; l < lanes; ++l) unit[l] = sigma[l] > 0 ? __builtin_ldexp(1.0, -__builtin_ilogb(sigma[l])) : 0;
  for (int64_t i = 0; i < n; ++i) {
    const Reals di = unit * Lane::load(d + i * all_lanes), ei = unit * Lane::load(e + i * all_lanes);
    Lane::store(q + i * all_lanes, di * di), Lane::store(e2 + i * all_lanes, ei * ei);
  }
  for (int64_t first = 0; first < n; first += values_at_once) {
    Reals square[values_at_once], square_low[values_at_once], low[values_at_once], high[values_at_once];
    for (int c = 0; c < values_at_once; ++c) {
      const int64_t i = first + c < n ? first + c : n - 1;
      const Reals x = unit * Lane::load(sigma + i * all_lanes);
      const Pairs exact = exact_product(x, x);
      square[c] = exact.hi, square_low[c] = exact.lo;
      low[c] = zero - 0x1p-46, high[c] = zero + 0x1p-46;
    }
    for (int step = 0; step < steps; ++step) {
      Reals middle[values_at_once], mu[values_at_once], s[values_at_once];
      Masks below[values_at_once] = {};
      for (int c = 0; c < values_at_once; ++c) {
        middle[c] = 0.5 * (low[c] + high[c]);
        mu[c] = square[c] + (square_low[c] + 2.0 * square[c] * middle[c]);
        s[c] = -mu[c];
      }
      for (int64_t i = 0; i < n; ++i) {
        const Reals qi = Lane::load(q + i * all_lanes), ei = Lane::load(e2 + i * all_lanes);
        for (int c = 0; c < values_at_once; ++c) {
          Reals p = qi + s[c];
          const Masks tiny = (p < smallest_pivot) & (p > -smallest_pivot);
          p = tiny ? zero - smallest_pivot : p;
          below[c] -= p < zero;
          s[c] = s[c] * (ei / p) - mu[c];
        }
      }
      for (int c = 0; c < values_at_once; ++c) {
        const Masks less = below[c] > n - 1 - (first + c);  // the value is less than `middle`
        high[c] = less ? middle[c] : high[c];
        low[c] = less ? low[c] : middle[c];
      }
    }
    for (int c = 0; c < values_at_once && first + c < n; ++c) {
      double* const value = sigma + (first + c) * all_lanes;
      Reals x = Lane::load(value);
      x += x * (0.5 * (low[c] + high[c]));
      // Brackets of equal values may end a unit apart in the wrong order.
      if (first + c > 0) {
        const Reals above = Lane::load(value - all_lanes);
        x = x < above ? x : above;
      }
      Lane::store(value, x);
    }
  }
}
