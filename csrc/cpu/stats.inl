// All statistics of one spectrum. The formulas are those of docs/statistics.md.
//
// With s = sigma / sigma_1 <= 1 and lambda = s^2 no power over- or underflows where it matters. Asked of logarithms are:
//
//   H(s / sum s) = ln sum s - sum(s ln s) / sum s,   likewise for lambda:  both terms are >= 0, so nothing cancels;
//   Hill's alpha = 1 + m / E_i with i = N / 2 and the power law's own E (powerlaw.inl);
//   rank-size    = -sum (u_k - u) ln s_k / sum (u_k - u)^2, u_k = ln k, over the positive values.
//
// cost       two logarithms and one exponential a value, and the power law's. The values are read once.
// workspace  3 doubles a value and the power law's.

struct StatsWorkspace {
  double *s, *log_s, *log_rank;
  PowerLawWorkspace fit;

  StatsWorkspace(Arena& arena, int64_t n)
      : s(arena.take<double>(round_up(n, SimdD::lanes))),
        log_s(arena.take<double>(round_up(n, SimdD::lanes))),
        log_rank(arena.take<double>(round_up(n, SimdD::lanes))),
        fit(arena, n) {}
};

static std::size_t stats_workspace_bytes(int64_t n) {
  Arena arena{nullptr, 0};
  StatsWorkspace(arena, n);
  return arena.used;
}

static double logarithm(double x) { return log_ratio(SimdD::broadcast(x), SimdD::broadcast(1))[0]; }

static double log10_of(double x) { return logarithm(x) * 0x1.bcb7b1526e50ep-2; }

// Sums over the spectrum; of logarithms where s > 0.
struct Moments {
  double s, lambda, lambda_squared, s_log_s, lambda_log_s;
  int64_t positive;         // s > 0
  int64_t positive_lambda;  // s^2 > 0: smaller where s < 1e-162
};

static Moments moments(const StatsWorkspace& ws, const double* sigma, int64_t n) {
  const VectorD largest = SimdD::broadcast(sigma[0]);
  VectorD s_sum{}, lambda_sum{}, lambda_squared{}, s_log_s{}, lambda_log_s{}, rank = lane_numbers() + 1;
  IntegersD positive{}, positive_lambda{};  // counted downwards: true is -1
  for (int64_t k = 0; k < n; k += SimdD::lanes, rank += SimdD::lanes) {
    const VectorD s = SimdD::load_unaligned(sigma + k) / largest, lambda = s * s;
    const VectorD log_s = s > 0 ? log_ratio(s > 0 ? s : VectorD{} + 1, VectorD{} + 1) : VectorD{};
    SimdD::store(ws.s + k, s);
    SimdD::store(ws.log_s + k, log_s);
    SimdD::store(ws.log_rank + k, log_ratio(rank, VectorD{} + 1));
    s_sum += s;
    lambda_sum += lambda;
    lambda_squared += lambda * lambda;
    s_log_s += s * log_s;
    lambda_log_s += lambda * log_s;
    positive += s > 0;
    positive_lambda += lambda > 0;
  }
  Moments found{
      SimdD::sum(s_sum), SimdD::sum(lambda_sum), SimdD::sum(lambda_squared), SimdD::sum(s_log_s), SimdD::sum(lambda_log_s), 0, 0};
  for (int64_t l = 0; l < SimdD::lanes; ++l) {
    found.positive -= positive[l];
    found.positive_lambda -= positive_lambda[l];
  }
  return found;
}

static double ranksize_of(const StatsWorkspace& ws, int64_t positive) {
  if (positive < 2) return __builtin_nan("");
  const double count = static_cast<double>(positive);
  VectorD log_sum{};
  for (int64_t k = 0; k < positive; k += SimdD::lanes)
    log_sum += lane_numbers() + static_cast<double>(k) < count ? SimdD::load(ws.log_rank + k) : VectorD{};
  const double mean = SimdD::sum(log_sum) / count;
  VectorD product{}, spread{};
  for (int64_t k = 0; k < positive; k += SimdD::lanes) {
    const VectorD deviation = lane_numbers() + static_cast<double>(k) < count ? SimdD::load(ws.log_rank + k) - mean : VectorD{};
    product += deviation * SimdD::load(ws.log_s + k);
    spread += deviation * deviation;
  }
  return -SimdD::sum(product) / SimdD::sum(spread);
}

static double ranksize_slope(const double* sigma, int64_t n, void* workspace) {
  Arena arena{static_cast<char*>(workspace), 0};
  const StatsWorkspace ws(arena, n);
  return sigma[0] > 0 ? ranksize_of(ws, moments(ws, sigma, n).positive) : __builtin_nan("");
}

// Which values stand out of the Marchenko-Pastur bulk; lambda relative to the largest.
static void bulk(const StatsWorkspace& ws, int64_t n, double largest, const BulkEdge& edge, FittedStats* fitted) {
  const double upper = ws.s[(n - 1) / 2], lower = ws.s[n / 2];
  const double relative_edge = (upper * upper + lower * lower) / 2 * edge.over_median;
  const double threshold = relative_edge * (1 + edge.slack);
  int64_t spikes = 0;
  while (spikes < n && ws.s[spikes] * ws.s[spikes] > threshold) ++spikes;
  fitted->mp_edge = relative_edge * largest * largest;
  fitted->mp_spikes = relative_edge == relative_edge ? static_cast<double>(spikes) : relative_edge;
}

static void no_stats(SmoothStats* smooth, FittedStats* fitted) {
  const double missing = __builtin_nan("");
  *smooth = {missing, missing, missing, missing, missing, missing, missing, missing, missing, missing, missing};
  *fitted = {missing, missing, missing, missing, 0, missing, missing, missing, missing};
}

static void stats(const double* sigma, int64_t n, const BulkEdge& edge, SmoothStats* smooth, FittedStats* fitted,
                  void* workspace) {
  Arena arena{static_cast<char*>(workspace), 0};
  const StatsWorkspace ws(arena, n);
  const double largest = sigma[0], missing = __builtin_nan("");
  no_stats(smooth, fitted);
  if (!(largest == largest) || !(sigma[n - 1] >= 0)) return;
  smooth->spectral_norm = largest;
  if (largest == 0) {
    smooth->frobenius_norm = smooth->nuclear_norm = 0;
    smooth->log_norm = -__builtin_inf();
    fitted->mp_edge = fitted->mp_spikes = 0 * edge.over_median;
    return;
  }

  const Moments sum = moments(ws, sigma, n);
  smooth->frobenius_norm = largest * __builtin_sqrt(sum.lambda);
  smooth->nuclear_norm = largest * sum.s;
  smooth->stable_rank = sum.lambda;
  const double entropy = logarithm(sum.s) - sum.s_log_s / sum.s;
  smooth->effective_rank = 1 / exp_minus(SimdD::broadcast(entropy))[0];
  const double lambda_entropy = logarithm(sum.lambda) - 2 * sum.lambda_log_s / sum.lambda;
  smooth->spectral_entropy = n > 1 ? lambda_entropy / logarithm(static_cast<double>(n)) : missing;
  smooth->participation_ratio = sum.lambda * sum.lambda / sum.lambda_squared;
  smooth->condition_number = 1 / ws.s[n - 1];
  const double log_largest = 2 * log10_of(largest);
  smooth->log_norm = log_largest + log10_of(sum.lambda);
  smooth->alpha_ranksize = ranksize_of(ws, sum.positive);
  bulk(ws, n, largest, edge, fitted);

  const int64_t count = sum.positive_lambda;
  for (int64_t j = 0; j < count; ++j) ws.fit.x[j] = ws.s[count - 1 - j] * ws.s[count - 1 - j];
  const Tail tail = best_tail(ws.fit, count);
  smooth->alpha_hill = hill_of(ws.fit, count, count - count / 2);
  if (tail.first < 0) return;

  const int64_t n_tail = count - tail.first;
  // xmin is not relative times sigma_1^2: sigma >= sqrt(xmin) is to hold for the tail and nothing else.
  const PowerLawFit fit = fit_of(tail, n_tail, sigma[n_tail - 1] * sigma[n_tail - 1]);
  fitted->alpha = fit.alpha;
  fitted->alpha_stderr = fit.alpha_stderr;
  fitted->xmin = fit.xmin;
  fitted->ks_distance = fit.ks_distance;
  fitted->n_tail = static_cast<double>(n_tail);
  fitted->alpha_weighted = fit.alpha * log_largest;
  VectorD powers{};
  for (int64_t k = 0; k < count; k += SimdD::lanes) {
    const VectorD power = exp_minus(-2 * fit.alpha * SimdD::load(ws.log_s + k));
    powers += lane_numbers() + static_cast<double>(k) < static_cast<double>(count) ? power : VectorD{};
  }
  fitted->log_alpha_norm = fit.alpha * log_largest + log10_of(SimdD::sum(powers));
}
