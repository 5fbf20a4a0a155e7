// Singular values of many small bidiagonals, one to a lane: dqds with Laguerre shifts, all lanes in lockstep.
//
// With q_i = d_i^2 and e_i the squared superdiagonal, one sweep of dqds (Fernando & Parlett 1994) with shift s is
//
//   d_1 = q_1 - s,   q'_i = d_i + e_i,   e'_i = e_i q_{i+1} / q'_i,   d_{i+1} = d_i q_{i+1} / q'_i - s,   q'_n = d_n,
//
// and turns B^T B into a similar matrix minus s I, each entry with a few roundings relative to itself, as long as no d_i is
// negative, that is s <= lambda_min. A sweep with s close to lambda_min makes the last e vanish, and q_n plus the sum of the
// shifts is an eigenvalue.
//
// The shift comes from the previous sweep. G = (B B^T)^-1 has the diagonal g_i and the sums of squares h_i above it in column i
//
//   N_i = 1 + r_{i-1} N_{i-1},  g_i = N_i / q_i,  h_i = P_i / q_i,  P_i = r_{i-1} (P_{i-1} + g_{i-1} N_{i-1}),  r_i = e_i / q_i,
//
// so tr G = sum g_i and tr G^2 = sum g_i^2 + 2 h_i are forward recurrences too (von Matt 1997), and Laguerre's
//
//   s = k / (tr G + sqrt((k - 1) (k tr G^2 - (tr G)^2)))
//
// is a lower bound of lambda_min that converges cubically. Rounding may carry it beyond: then the lane takes back its sweep and
// tries a smaller one (Parlett & Marques 2000). All sums run forward, so they also stand ready for the block above a split.
//
// A lane works on the last block [lo, hi] that no e = 0 divides; a split leaves minus the block's sum of shifts in the place of
// e. Lanes never mix: a finished one is carried along unchanged. A lane that has not finished after `sweep_limit` is left to
// bisection.
//
// 4 sweeps of half the length a value, on Gaussian matrices, until the slowest of 16 lanes is done. A row is a chain of add,
// divide, multiply-add; `packs` registers side by side hide half of it, and the recurrences of the traces the rest. Rows that are
// inner ones in all lanes need no masks. group.inl has the ladder.

static_assert(grouped_size <= 64, "the starts of a lane's blocks are the bits of one word");

// Pivots below this count as zero; the quotient of an entry and it does not overflow, entries being below 2^115 (lanes.inl).
static constexpr double zero_pivot = 0x1p-900;

struct DqdsLanes {
  double *q, *e, *q_next, *e_next;  // (n + 1) x all_lanes; a sweep goes from q, e to q_next, e_next
  double* lambda;                   // n x all_lanes: the eigenvalues of B^T B, in no order
};

// What a lane knows beside its entries. lo and hi are whole numbers; hi < 0 when the lane is done.
struct alignas(workspace_alignment) DqdsState {
  double lo[all_lanes], hi[all_lanes];
  double shift[all_lanes], sum[all_lanes], sum_low[all_lanes];  // sum + sum_low: the shifts so far, in two words
  double trace[all_lanes], trace2[all_lanes];                   // of G, for [lo, hi]
  double trace_above[all_lanes], trace2_above[all_lanes];       // of G, for the block above the last split
  double last[all_lanes];                                       // d_hi
  int64_t early[all_lanes];                                     // a d before d_hi was negative
  int64_t splits[all_lanes];                                    // bit i: this sweep found e_{i-1} = 0
  int64_t starts[all_lanes];                                    // bit i: a block starts at i
  int64_t failures[all_lanes];                                  // in a row
};

// The registers of a sweep.
struct DqdsSweep {
  Reals lo[packs], hi[packs], shift[packs], sum[packs];  // of the lanes
  Reals d[packs], n[packs], p[packs];                    // the recurrences at i
  Reals trace[packs], trace2[packs], trace_above[packs], trace2_above[packs];
  Masks early[packs], splits[packs];
};

// Rows first .. last of a sweep. Where `masked` is false lo <= i < hi for all lanes that matter.
// Scalar is the output type: for float32 an e may be dropped earlier, and the quotients may share a reciprocal.
template <typename Scalar, bool masked>
static inline void dqds_rows(const DqdsLanes& z, DqdsSweep& w, int64_t first, int64_t last) {
  constexpr bool narrow = sizeof(Scalar) < sizeof(double);
  // sqrt(e / (lambda + sum)) bounds the relative change of lambda.
  constexpr double negligible = narrow ? 0x1p-60 : 0x1p-108;
  const Reals zero{}, one = zero + 1.0;
  for (int64_t i = first; i < last; ++i) {
    const Reals at = zero + static_cast<double>(i);
    const Masks bit = Masks{} + static_cast<int64_t>(uint64_t{2} << (i & 63));
    for (int64_t r = 0; r < packs; ++r) {
      const int64_t here = i * all_lanes + r * lanes;
      const Reals q = Lane::load(z.q + here), e = Lane::load(z.e + here), below = Lane::load(z.q + here + all_lanes);
      const Masks inner = (w.lo[r] <= at) & (at < w.hi[r]), active = inner | (at == w.hi[r]);
      Reals d = w.d[r];
      if constexpr (masked) d = at == w.lo[r] ? q - w.shift[r] : d;

      Masks negative = d < zero;
      if constexpr (masked) negative &= inner;
      w.early[r] |= negative;
      // As if d were at least zero_pivot, but beside the chain of dependent operations.
      const Reals pivot = d + zero_pivot, q_new = d + ((!masked ? e : inner ? e : zero) + zero_pivot);
      const Reals inverse = one / q_new;
      const Reals ratio = narrow ? below * inverse : below / q_new;
      const Reals e_new = e * ratio;
      Masks split = e_new <= negligible * (w.sum[r] + q_new);
      if constexpr (masked) split &= inner;
      const Reals e_kept = split ? -w.sum[r] : e_new, d_next = pivot * ratio - w.shift[r];
      Lane::store(z.q_next + here, !masked ? q_new : active ? q_new : q);
      Lane::store(z.e_next + here, !masked ? e_kept : inner ? e_kept : e);
      w.d[r] = !masked ? d_next : inner ? d_next : d;

      const Reals counted = !masked ? inverse : active ? inverse : zero;
      const Reals g = w.n[r] * counted, gn = g * w.n[r];
      w.trace[r] += g;
      w.trace2[r] += g * g;
      w.trace2[r] += (w.p[r] + w.p[r]) * counted;
      const Reals linked = e_new * counted, quotient = !masked ? (split ? zero : linked) : inner & ~split ? linked : zero;
      w.n[r] = one + quotient * w.n[r];
      w.p[r] = quotient * (w.p[r] + gn);
      w.trace_above[r] = split ? w.trace[r] : w.trace_above[r], w.trace2_above[r] = split ? w.trace2[r] : w.trace2_above[r];
      w.trace[r] = split ? zero : w.trace[r], w.trace2[r] = split ? zero : w.trace2[r];
      w.splits[r] |= split & bit;
    }
  }
}

// [first, last): rows that are inner ones in all lanes that matter; `end`: the last row of any lane.
template <typename Scalar>
static void dqds_sweep(const DqdsLanes& z, DqdsState& state, int64_t first, int64_t last, int64_t end) {
  const Reals zero{};
  DqdsSweep w;
  for (int64_t r = 0; r < packs; ++r) {
    w.lo[r] = Lane::load(state.lo + r * lanes), w.hi[r] = Lane::load(state.hi + r * lanes);
    w.shift[r] = Lane::load(state.shift + r * lanes), w.sum[r] = Lane::load(state.sum + r * lanes);
    w.d[r] = w.p[r] = w.trace[r] = w.trace2[r] = w.trace_above[r] = w.trace2_above[r] = zero;
    w.n[r] = zero + 1.0;
    w.early[r] = w.splits[r] = Masks{};
  }
  dqds_rows<Scalar, true>(z, w, 0, first);
  dqds_rows<Scalar, false>(z, w, first, last);
  dqds_rows<Scalar, true>(z, w, last, end + 1);
  for (int64_t r = 0; r < packs; ++r) {
    const int64_t lane = r * lanes;
    Lane::store(state.last + lane, w.d[r]);
    Lane::store(state.trace + lane, w.trace[r]), Lane::store(state.trace2 + lane, w.trace2[r]);
    Lane::store(state.trace_above + lane, w.trace_above[r]), Lane::store(state.trace2_above + lane, w.trace2_above[r]);
    store_masks(state.early + lane, w.early[r]), store_masks(state.splits + lane, w.splits[r]);
  }
}

// Eigenvalues of the block of order two with entries q_0, e, q_1 (LAPACK xLASQ3).
static inline void eigenvalues_of_order_two(double q0, double e, double q1, double* larger_one, double* smaller_one) {
  double high = q0 > q1 ? q0 : q1, low = q0 > q1 ? q1 : q0;
  if (e > 0x1p-110 * low) {
    const double t = 0.5 * ((high - low) + e);
    double s = low * (e / t);
    s = s <= t ? low * (e / (t * (1 + __builtin_sqrt(1 + s / t)))) : low * (e / (t + __builtin_sqrt(t) * __builtin_sqrt(t + s)));
    const double sum = high + (s + e);
    low *= high / sum;
    high = sum;
  }
  *larger_one = high;
  *smaller_one = low;
}

// Takes the blocks of order one and two at the end of lane l, and goes on to the block above them.
static void settle(const DqdsLanes& z, DqdsState& state, int64_t l) {
  int64_t hi = static_cast<int64_t>(state.hi[l]), lo = -1;
  double sum = state.sum[l], sum_low = state.sum_low[l];
  for (int64_t taken = 0; hi >= 0; ++taken) {
    const uint64_t starts = static_cast<uint64_t>(state.starts[l]) << (63 - hi);
    lo = hi - __builtin_clzll(starts);
    if (taken == 1) {
      state.trace[l] = state.trace_above[l];
      state.trace2[l] = state.trace2_above[l];
    } else if (taken > 1) {
      state.trace[l] = state.trace2[l] = __builtin_inf();  // not known: the next shift is zero
    }
    if (hi - lo >= 2) break;
    const double* q = z.q + l;
    double* lambda = z.lambda + l;
    if (lo == hi) {
      lambda[hi * all_lanes] = (q[hi * all_lanes] + sum_low) + sum;
    } else {
      double high, low;
      eigenvalues_of_order_two(q[lo * all_lanes], z.e[lo * all_lanes + l], q[hi * all_lanes], &high, &low);
      lambda[lo * all_lanes] = (high + sum_low) + sum;
      lambda[hi * all_lanes] = (low + sum_low) + sum;
    }
    hi = lo - 1;
    sum = hi >= 0 ? -z.e[hi * all_lanes + l] : 0;
    sum_low = 0;
    lo = -1;
  }
  state.lo[l] = static_cast<double>(lo);
  state.hi[l] = static_cast<double>(hi);
  state.sum[l] = sum;
  state.sum_low[l] = sum_low;
}

// Laguerre's lower bound of the smallest eigenvalue of each lane's block; zero where the traces are infinite or unknown.
static void laguerre_shifts(DqdsState& state) {
  const Reals zero{};
  for (int64_t first = 0; first < all_lanes; first += lanes) {
    const Reals trace = Lane::load(state.trace + first), trace2 = Lane::load(state.trace2 + first);
    const Reals k = Lane::load(state.hi + first) - Lane::load(state.lo + first) + 1.0;
    // k tr G^2 - (tr G)^2 is known up to the last term.
    const Reals spread = larger(k * trace2 - trace * trace, zero) + 0x1p-48 * (k * trace2);
    Reals shift = (1 - 0x1p-47) * k / (trace + square_root((k - 1.0) * spread));
    shift = (shift > zero) & (Lane::load(state.hi + first) >= zero) ? shift : zero;
    Lane::store(state.shift + first, shift);
  }
}

// Sweep s of lane l went below zero: its entries are what they were, and the next shift is smaller.
static void take_back(const DqdsLanes& z, DqdsState& state, int64_t l, double sum, double sum_low) {
  for (int64_t i = static_cast<int64_t>(state.lo[l]); i <= static_cast<int64_t>(state.hi[l]); ++i) {
    z.q_next[i * all_lanes + l] = z.q[i * all_lanes + l];
    z.e_next[i * all_lanes + l] = z.e[i * all_lanes + l];
  }
  state.sum[l] = sum;
  state.sum_low[l] = sum_low;
  // Where d_hi alone is negative, s + d_hi is a lower bound again.
  const double corrected = (state.shift[l] + state.last[l]) * (1 - 0x1p-50);
  state.shift[l] = ++state.failures[l] > 2 ? 0 : !state.early[l] && corrected > 0 ? corrected : 0.25 * state.shift[l];
}

// q, e -> lambda. Returns a word whose bit l says that lane l has not finished. The last row of q and e is never used, but read.
template <typename Scalar>
static uint64_t dqds_lanes(DqdsLanes z, int64_t n) {
  DqdsState state;
  for (int64_t l = 0; l < all_lanes; ++l) {
    state.hi[l] = static_cast<double>(n - 1);
    state.starts[l] = 1;
    state.shift[l] = state.sum[l] = state.sum_low[l] = 0;
    state.trace[l] = state.trace2[l] = 0;
    state.failures[l] = 0;
    settle(z, state, l);
  }
  const int64_t sweep_limit = 16 * n + 32;  // about 4 n are needed
  uint64_t unfinished = 0;
  for (int64_t sweep = 0;; ++sweep) {
    int64_t highest_lo = 0, lowest_hi = n, highest_hi = -1;
    unfinished = 0;
    for (int64_t l = 0; l < all_lanes; ++l) {
      const int64_t lo = static_cast<int64_t>(state.lo[l]), hi = static_cast<int64_t>(state.hi[l]);
      if (hi < 0) continue;
      unfinished |= uint64_t{1} << l;
      highest_lo = lo > highest_lo ? lo : highest_lo;
      lowest_hi = hi < lowest_hi ? hi : lowest_hi;
      highest_hi = hi > highest_hi ? hi : highest_hi;
    }
    if (!unfinished || sweep == sweep_limit) break;
    const int64_t inner_first = highest_lo + 1 < lowest_hi ? highest_lo + 1 : lowest_hi;
    alignas(workspace_alignment) double sum[all_lanes], sum_low[all_lanes];
    for (int64_t first = 0; first < all_lanes; first += lanes) {
      const Reals a = Lane::load(state.sum + first), low = Lane::load(state.sum_low + first);
      const Reals shift = Lane::load(state.shift + first);
      Lane::store(sum + first, a), Lane::store(sum_low + first, low);
      const Reals total = a + shift, part = total - a;
      Lane::store(state.sum + first, total);
      Lane::store(state.sum_low + first, low + ((a - (total - part)) + (shift - part)));
    }
    dqds_sweep<Scalar>(z, state, inner_first, lowest_hi, highest_hi);

    uint64_t failed = 0, split = 0;
    for (int64_t l = 0; l < all_lanes; ++l) {
      failed |= static_cast<uint64_t>((state.last[l] < 0) | (state.early[l] != 0)) << l;
      split |= static_cast<uint64_t>(state.splits[l] != 0) << l;
    }
    alignas(workspace_alignment) double retry[all_lanes];
    failed &= unfinished, split &= unfinished & ~failed;
    for (uint64_t left = failed; left; left &= left - 1) {
      const int64_t l = __builtin_ctzll(left);
      take_back(z, state, l, sum[l], sum_low[l]);
      retry[l] = state.shift[l];
    }
    double* swap = z.q;
    z.q = z.q_next;
    z.q_next = swap;
    swap = z.e;
    z.e = z.e_next;
    z.e_next = swap;
    for (uint64_t left = split; left; left &= left - 1) {
      const int64_t l = __builtin_ctzll(left);
      state.starts[l] |= state.splits[l];
      settle(z, state, l);
    }
    laguerre_shifts(state);
    for (int64_t l = 0; l < all_lanes; ++l) {
      if (failed >> l & 1)
        state.shift[l] = retry[l];
      else
        state.failures[l] = 0;
    }
  }
  return unfinished;
}
