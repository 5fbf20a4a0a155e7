// The pipeline of one matrix: load -> reduce (if tall) -> band -> bidiagonal -> values. Where n is small it is
// load -> reduce (if tall) -> bidiagonal -> values, a column at a time and in double. Driver "gram" has another `reduce`.

template <typename Scalar>
static std::size_t svdvals_workspace_bytes(int64_t rows, int64_t cols) {
  const TallView a = tall_view(MatrixView{nullptr, ElementType::float32, rows, cols, 0, 0});
  Arena arena{nullptr, 0};
  if (directly(a.n))
    typename SmallOf<Scalar>::Workspaces(arena, a.m, a.n);
  else
    TwoStageWorkspaces<Scalar>(arena, a.m, a.n);
  return arena.used;
}

static std::size_t gram_workspace_bytes(int64_t rows, int64_t cols) {
  const TallView a = tall_view(MatrixView{nullptr, ElementType::float32, rows, cols, 0, 0});
  Arena arena{nullptr, 0};
  GramWorkspaces(arena, a.m, a.n);
  return arena.used;
}

// Charges `stage` with the time since the stage before it ended.
static inline void stage_ends(StageClock* clock, Stage stage, Work unit, double amount) {
  if (!clock) return;
  const double now = clock->now();
  StageTime& time = clock->stages[stage];
  time.seconds += now - clock->last;
  time.unit = unit;
  time.amount += amount;
  clock->last = now;
}

template <typename T>
static constexpr Work flops_of = sizeof(T) == sizeof(float) ? Work::flops_float32 : Work::flops_float64;

// Read once and written once.
template <typename T, typename Element>
static inline double load_bytes(int64_t rows, int64_t cols) {
  return static_cast<double>(rows) * cols * (sizeof(typename Element::Bits) + sizeof(T));
}

static inline double cubed(int64_t n) { return static_cast<double>(n) * n * n; }
static inline double reduce_flops(int64_t rows, int64_t n) { return 2.0 * rows * n * n; }
static inline double reduce_saved_flops(int64_t n) { return 2 * cubed(n) / 3; }  // R is a triangle
static inline double gram_flops(int64_t rows, int64_t n) { return static_cast<double>(rows) * n * n; }
static inline double cholesky_flops(int64_t n) { return cubed(n) / 3; }
static inline double bidiagonalization_flops(int64_t m, int64_t n) { return 4.0 * m * n * n - 4 * cubed(n) / 3; }

// Folds all rows of `a` into the triangle ws.r. False if cancelled, as all that follow.
template <typename T, typename Element>
static bool reduce(const ReduceWorkspace<T>& ws, const TallView& a, const Scale<T>& scale, const Team& team, StageClock* clock) {
  const int64_t padded_n = round_up(a.n, Blocks<T>::block);
  for (int64_t i = 0; i < triangle_size<T>(padded_n); ++i) ws.r[i] = 0;
  for (int64_t first = 0; first < a.m; first += ws.chunk_rows) {
    const int64_t rows = a.m - first < ws.chunk_rows ? a.m - first : ws.chunk_rows;
    load_strips<T, Element>(a, first, rows, padded_n, scale, ws.c, team);
    stage_ends(clock, stage_load, Work::bytes, load_bytes<T, Element>(rows, a.n));
    if (!reduce_fold(ws, rows, a.n, team)) return false;
    stage_ends(clock, stage_reduce, flops_of<T>, reduce_flops(rows, a.n));
  }
  stage_ends(clock, stage_reduce, flops_of<T>, -reduce_saved_flops(a.n));
  return true;
}

template <typename Element>
static bool bidiagonalize(const DirectWorkspaces& ws, const TallView& a, int exponent, const Team& team, StageClock* clock) {
  const DirectWorkspace& square = ws.direct;
  const Scale<double> scale = Scale<double>::of(exponent);
  int64_t m = a.m;
  if (reduce_first(a.m, a.n)) {
    if (!reduce<double, Element>(ws.reduce, a, scale, team, clock)) return false;
    m = a.n;
    for (int64_t i = 0; i < a.n; ++i) {
      const double* const row = triangle_row<double>(ws.reduce.r, round_up(a.n, Blocks<double>::block), i);
      const int64_t first = round_down(i, Blocks<double>::block);
      for (int64_t j = 0; j < square.ld; ++j) square.a[i * square.ld + j] = j >= i && j < a.n ? row[j - first] : 0;
    }
  } else {
    load_rows<double, Element>(a, 0, a.m, square.ld, scale, square.a, square.ld);
    stage_ends(clock, stage_load, Work::bytes, load_bytes<double, Element>(a.m, a.n));
  }
  bidiagonalize_directly(square, m, a.n, ws.form.d, ws.form.e);
  stage_ends(clock, stage_bidiagonal, Work::flops_float64, bidiagonalization_flops(m, a.n));
  return true;
}

template <typename Element>
static bool bidiagonalize(const PreciseWorkspaces& ws, const TallView& a, int exponent, const Team& team, StageClock* clock) {
  const DirectWorkspace& square = ws.direct;
  const Scale<double> scale = Scale<double>::of(exponent);
  const bool reorder = order_columns(a, scale, square.w, ws.order);
  int64_t m = a.m;
  if (reduce_first(a.m, a.n)) {
    const DirectReduceWorkspace& reduce = ws.reduce;
    m = a.n;
    for (int64_t i = 0; i < a.n * reduce.ld; ++i) reduce.r[i] = 0;
    for (int64_t first = 0; first < a.m; first += reduce.chunk_rows) {
      const int64_t rows = a.m - first < reduce.chunk_rows ? a.m - first : reduce.chunk_rows;
      load_rows<double, Element>(a, first, rows, reduce.ld, scale, reduce.chunk, reduce.ld);
      if (reorder) reorder_columns(reduce.chunk, rows, a.n, reduce.ld, 1, ws.order, square.part);
      stage_ends(clock, stage_load, Work::bytes, load_bytes<double, Element>(rows, a.n));
      direct_fold(reduce, rows, a.n);
      stage_ends(clock, stage_reduce, Work::flops_float64, reduce_flops(rows, a.n));
      if (cancelled(team)) return false;
    }
    stage_ends(clock, stage_reduce, Work::flops_float64, -reduce_saved_flops(a.n));
  } else {
    load_rows<double, Element>(a, 0, a.m, square.ld, scale, square.a, square.ld);
    if (reorder) reorder_columns(square.a, a.m, a.n, square.ld, 1, ws.order, square.part);
    stage_ends(clock, stage_load, Work::bytes, load_bytes<double, Element>(a.m, a.n));
  }
  bidiagonalize_precisely(square, m, a.n, ws.form.d, ws.form.e);
  stage_ends(clock, stage_bidiagonal, Work::flops_float64, bidiagonalization_flops(m, a.n));
  return true;
}

// The matrix in ws.band.a, m x n and zero around it.
template <typename T>
static bool bidiagonalize_in_two_stages(const TwoStageWorkspaces<T>& ws, int64_t m, int64_t n, const Team& team,
                                        StageClock* clock, const Kept<T>* kept = nullptr) {
  if (!reduce_to_band(ws.band, ws.padded_m, ws.padded_n, ws.storage, team, kept)) return false;
  stage_ends(clock, stage_band, flops_of<T>, bidiagonalization_flops(m, n));
  if (!bidiagonalize_band<Blocks<T>::block>(ws.storage, n, ws.form.d, ws.form.e, ws.done, team, kept)) return false;
  stage_ends(clock, stage_bidiagonal, Work::flops_float64, 8.0 * n * n * Blocks<T>::block);
  return true;
}

template <typename Element, typename T>
static bool bidiagonalize(const TwoStageWorkspaces<T>& ws, const TallView& a, int exponent, const Team& team, StageClock* clock,
                          const Kept<T>* kept = nullptr) {
  const Scale<T> scale = Scale<T>::of(exponent);
  int64_t m = a.m;
  if (reduce_first(a.m, a.n)) {
    if (!reduce<T, Element>(ws.reduce, a, scale, team, clock)) return false;
    m = a.n;
    load_triangle(ws.reduce.r, ws.padded_n, ws.band.a);
    stage_ends(clock, stage_reduce, flops_of<T>, 0);
  } else {
    load_strips<T, Element>(a, 0, a.m, ws.padded_n, scale, ws.band.a, team);
    zero_rows(ws.band.a, a.m, ws.padded_n);
    stage_ends(clock, stage_load, Work::bytes, load_bytes<T, Element>(a.m, a.n));
  }
  return bidiagonalize_in_two_stages(ws, m, a.n, team, clock, kept);
}

template <typename Element>
static bool bidiagonalize(const GramWorkspaces& ws, const TallView& a, int exponent, const Team& team, StageClock* clock) {
  const Scale<double> scale = Scale<double>::of(exponent);
  const Strips<double>& g = ws.square.band.a;
  const int64_t padded_n = round_up(g.rows, Blocks<double>::strip_columns);  // whole strips
  for (int64_t first = 0; first < a.m; first += ws.gram.a.rows) {
    const int64_t rows = a.m - first < ws.gram.a.rows ? a.m - first : ws.gram.a.rows;
    load_strips<double, Element>(a, first, rows, padded_n, scale, ws.gram.a, team);
    stage_ends(clock, stage_load, Work::bytes, load_bytes<double, Element>(rows, a.n));
    gram_fold(g, ws.gram.a, rows, first == 0, team);
    stage_ends(clock, stage_reduce, Work::flops_float64, gram_flops(rows, a.n));
    if (cancelled(team)) return false;
  }
  *ws.gram.shift = gram_shift(g, a.m, a.n);
  if (!cholesky(g, a.n, team)) return false;
  stage_ends(clock, stage_reduce, Work::flops_float64, cholesky_flops(a.n));
  return bidiagonalize_in_two_stages(ws.square, a.n, a.n, team, clock);
}

// d, e -> values, times 2^-exponent. Returns the number of points counted.
template <typename Workspaces, typename Scalar>
static int64_t scaled_values(const Workspaces& ws, int64_t n, int exponent, Scalar* values, const Team& team) {
  return bidiagonal_values(ws.form.values, ws.form.d, ws.form.e, n, -exponent, values, team);
}

template <typename Scalar>
static int64_t scaled_values(const GramWorkspaces& ws, int64_t n, int exponent, Scalar* values, const Team& team) {
  const int64_t points = scaled_values(ws.square, n, 0, ws.values, team);
  const Scale<double> scale = Scale<double>::of(-exponent);
  for (int64_t i = 0; i < n; ++i) {
    const double square = ws.values[i] * ws.values[i] - *ws.gram.shift;
    values[i] = static_cast<Scalar>(scale(square < 0 ? 0 : __builtin_sqrt(square)));
  }
  return points;
}

template <typename Workspaces, typename Element, typename Scalar>
static int32_t walk(const TallView& a, int exponent, Scalar* values, void* workspace, const Team& team, StageClock* clock) {
  Arena arena{static_cast<char*>(workspace), 0};
  const Workspaces ws(arena, a.m, a.n);
  if (!bidiagonalize<Element>(ws, a, exponent, team, clock)) return info_cancelled;
  const int64_t points = scaled_values(ws, a.n, exponent, values, team);
  stage_ends(clock, stage_values, Work::divisions, static_cast<double>(points) * a.n);
  return info_ok;
}

template <bool gram, typename Element, typename Scalar>
static int32_t svdvals_of(const TallView& a, Scalar* values, void* workspace, const Team& team, StageClock* clock) {
  const typename Element::Bits largest = largest_magnitude<Element>(a);
  if (largest >= Element::infinity) {
    for (int64_t i = 0; i < a.n; ++i) values[i] = static_cast<Scalar>(__builtin_nan(""));
    return info_nonfinite;
  }
  const int exponent = scale_exponent(Element::value(largest));
  if constexpr (gram) {
    if (largest > 0) return walk<GramWorkspaces, Element>(a, exponent, values, workspace, team, clock);
    for (int64_t i = 0; i < a.n; ++i) values[i] = 0;  // no shift makes these pivots positive
    return info_ok;
  }
  if (a.n == 1) {
    norm_of_column<Element>(a, exponent, values);
    stage_ends(clock, stage_values, Work::flops_float64, 2.0 * a.m);
    return info_ok;
  }
  return directly(a.n) ? walk<typename SmallOf<Scalar>::Workspaces, Element>(a, exponent, values, workspace, team, clock)
                       : walk<TwoStageWorkspaces<Scalar>, Element>(a, exponent, values, workspace, team, clock);
}

template <bool gram>
static void svdvals_float32(const MatrixView& a, float* values, int32_t* info, void* workspace, const Team& team,
                            StageClock* clock) {
  const TallView tall = tall_view(a);
  switch (a.element) {
    case ElementType::float16: *info = svdvals_of<gram, Float16>(tall, values, workspace, team, clock); break;
    case ElementType::bfloat16: *info = svdvals_of<gram, BFloat16>(tall, values, workspace, team, clock); break;
    default: *info = svdvals_of<gram, Float32>(tall, values, workspace, team, clock);
  }
}

template <bool gram>
static void svdvals_float64(const MatrixView& a, double* values, int32_t* info, void* workspace, const Team& team,
                            StageClock* clock) {
  *info = svdvals_of<gram, Float64>(tall_view(a), values, workspace, team, clock);
}
