// The pipeline of one matrix: load -> reduce (if tall) -> band -> bidiagonal -> values. Up to direct_size columns it is
// load -> reduce (if tall) -> bidiagonal -> values, a column at a time and in double.

// Householder QR first pays when m > 5/3 n (Chan 1982; LAPACK xGESDD's crossover is 11/6).
static inline bool reduce_first(int64_t m, int64_t n) { return 3 * m > 5 * n; }

// In double, 128 x 128 takes as long directly as in two stages (AMD Zen 5, AVX-512: 0.156 and 0.152 ms before `values`; 64 x 64
// 0.026 and 0.046, 256 x 256 1.13 and 0.85). And a float32 bidiagonalization errs by up to sqrt(n) / 2 eps sigma_1 where many
// values are equal (3.2 eps seen at n = 64), more than the 2 eps promised up to this size.
static constexpr int64_t direct_size = 128;

struct BidiagonalForm {
  double *d, *e;  // n, n - 1
  ValuesWorkspace values;

  BidiagonalForm(Arena& arena, int64_t n) : d(arena.take<double>(n)), e(arena.take<double>(n)), values(arena, n) {}
};

struct DirectWorkspaces {
  BidiagonalForm form;
  DirectReduceWorkspace reduce;
  DirectWorkspace direct;
  int64_t* order;  // n

  DirectWorkspaces(Arena& arena, int64_t m, int64_t n) : form(arena, n), reduce(), direct(), order(arena.take<int64_t>(n)) {
    const int64_t ld = leading_dimension<double>(n);
    int64_t rows = m;
    if (reduce_first(m, n)) {
      rows = n;
      reduce.ld = ld;
      reduce.r = arena.take<double>(n * ld);
      reduce.chunk_rows = direct_chunk_rows(m, ld * static_cast<int64_t>(sizeof(double)));
      reduce.chunk = arena.take<double>(reduce.chunk_rows * ld);
      reduce.v = arena.take<double>(reduce.chunk_rows);
      reduce.v_next = arena.take<double>(reduce.chunk_rows);
      double** const wide[] = {&reduce.w, &reduce.sum, &reduce.lost, &reduce.part};
      for (double** row : wide) *row = arena.take<double>(ld);
    }
    direct.ld = ld;
    direct.a = reduce_first(m, n) ? reduce.r : arena.take<double>(rows * ld);
    double** const wide[] = {&direct.w, &direct.u, &direct.sum, &direct.lost, &direct.part};
    for (double** row : wide) *row = arena.take<double>(ld);
    double** const tall[] = {&direct.v, &direct.y, &direct.v_next, &direct.y_next};
    for (double** col : tall) *col = arena.take<double>(rows);
  }
};

template <typename T>
struct TwoStageWorkspaces {
  BidiagonalForm form;
  ReduceWorkspace<T> reduce;
  BandWorkspace<T> band;
  T* storage;     // of the band
  int64_t* done;  // of the chase
  int64_t padded_m, padded_n;

  TwoStageWorkspaces(Arena& arena, int64_t m, int64_t n) : form(arena, n), reduce(), band() {
    constexpr int b = Blocks<T>::block;
    padded_m = round_up(reduce_first(m, n) ? n : m, b);
    padded_n = round_up(n, b);
    band.top = arena.take<double>(b * b);
    band.t = arena.take<double>(b * b);
    if (reduce_first(m, n)) {
      reduce.chunk_rows = m < reduce_chunk_rows ? m : reduce_chunk_rows;
      reduce.r = arena.take<double>(triangle_size<T>(padded_n));
      reduce.c = {arena.take<T>(Strips<T>::size(reduce.chunk_rows, padded_n)), reduce.chunk_rows};
      reduce.w = {arena.take<T>(Strips<T>::size(b, padded_n)), b};
      for (ReducePanel<T>& panel : reduce.panel) {
        panel.v = arena.take<T>(reduce.chunk_rows * b);
        panel.u = arena.take<T>(reduce.chunk_rows * b);
        panel.t = arena.take<double>(b * b);
      }
    }
    band.a = {arena.take<T>(Strips<T>::size(padded_m, padded_n)), padded_m};
    band.w = {arena.take<T>(Strips<T>::size(b, padded_n)), b};
    band.z = {arena.take<T>(Strips<T>::size(b, padded_n)), b};
    T** const tall[] = {&band.v, &band.v_next, &band.y, &band.u};
    for (T** col : tall) *col = arena.take<T>(padded_m * b);
    band.q = arena.take<T>(padded_n * b);
    band.m = arena.take<T>(b * b);
    storage = arena.take<T>(BandStorage<T>::size(padded_n));
    done = arena.take<int64_t>(n / group_sweeps + 1);
  }
};

template <typename Scalar>
static std::size_t svdvals_workspace_bytes(int64_t rows, int64_t cols) {
  const TallView a = tall_view(MatrixView{nullptr, ElementType::float32, rows, cols, 0, 0});
  Arena arena{nullptr, 0};
  if (a.n <= direct_size)
    DirectWorkspaces(arena, a.m, a.n);
  else
    TwoStageWorkspaces<Scalar>(arena, a.m, a.n);
  return arena.used;
}

// False if cancelled, as all that follow.
template <typename Element>
static bool bidiagonalize_directly(const DirectWorkspaces& ws, const TallView& a, const Scale<double>& scale, const Team& team) {
  constexpr bool precise = sizeof(typename Element::Bits) == sizeof(double);
  constexpr auto bidiagonal = precise ? bidiagonalize_precisely : bidiagonalize;
  const DirectWorkspace& square = ws.direct;
  bool reorder = false;
  if constexpr (precise) reorder = order_columns(a, scale, square.w, ws.order);
  if (!reduce_first(a.m, a.n)) {
    load_rows<double, Element>(a, 0, a.m, scale, square.a, square.ld);
    if (reorder) reorder_columns(square.a, a.m, a.n, square.ld, ws.order, square.part);
    bidiagonal(square, a.m, a.n, ws.form.d, ws.form.e);
    return true;
  }
  const DirectReduceWorkspace& reduce = ws.reduce;
  for (int64_t i = 0; i < a.n * reduce.ld; ++i) reduce.r[i] = 0;
  for (int64_t first = 0; first < a.m; first += reduce.chunk_rows) {
    const int64_t rows = a.m - first < reduce.chunk_rows ? a.m - first : reduce.chunk_rows;
    load_rows<double, Element>(a, first, rows, scale, reduce.chunk, reduce.ld);
    if (reorder) reorder_columns(reduce.chunk, rows, a.n, reduce.ld, ws.order, square.part);
    direct_fold<precise>(reduce, rows, a.n);
    if (cancelled(team)) return false;
  }
  bidiagonal(square, a.n, a.n, ws.form.d, ws.form.e);
  return true;
}

template <typename T, typename Element>
static bool bidiagonalize_in_two_stages(const TwoStageWorkspaces<T>& ws, const TallView& a, const Scale<T>& scale,
                                        const Team& team) {
  if (reduce_first(a.m, a.n)) {
    for (int64_t i = 0; i < triangle_size<T>(ws.padded_n); ++i) ws.reduce.r[i] = 0;
    for (int64_t first = 0; first < a.m; first += ws.reduce.chunk_rows) {
      const int64_t rows = a.m - first < ws.reduce.chunk_rows ? a.m - first : ws.reduce.chunk_rows;
      load_strips<T, Element>(a, first, rows, ws.padded_n, scale, ws.reduce.c, team);
      if (!reduce_fold(ws.reduce, rows, ws.padded_n, team)) return false;
    }
    load_triangle(ws.reduce.r, ws.padded_n, ws.band.a);
  } else {
    load_strips<T, Element>(a, 0, a.m, ws.padded_n, scale, ws.band.a, team);
    zero_rows(ws.band.a, a.m, ws.padded_n);
  }
  return reduce_to_band(ws.band, ws.padded_m, ws.padded_n, ws.storage, team) &&
         bidiagonalize_band(ws.storage, a.n, ws.form.d, ws.form.e, ws.done, team);
}

template <typename Element, typename Scalar>
static int32_t svdvals_of(const TallView& a, Scalar* values, void* workspace, const Team& team) {
  const typename Element::Bits largest = largest_magnitude<Element>(a);
  if (largest >= Element::infinity) {
    for (int64_t i = 0; i < a.n; ++i) values[i] = static_cast<Scalar>(__builtin_nan(""));
    return info_nonfinite;
  }
  const int exponent = scale_exponent(Element::value(largest));
  Arena arena{static_cast<char*>(workspace), 0};
  if (a.n <= direct_size) {
    const DirectWorkspaces ws(arena, a.m, a.n);
    if (!bidiagonalize_directly<Element>(ws, a, Scale<double>::of(exponent), team)) return info_cancelled;
    bidiagonal_values(ws.form.values, ws.form.d, ws.form.e, a.n, -exponent, values, team);
  } else {
    const TwoStageWorkspaces<Scalar> ws(arena, a.m, a.n);
    if (!bidiagonalize_in_two_stages<Scalar, Element>(ws, a, Scale<Scalar>::of(exponent), team)) return info_cancelled;
    bidiagonal_values(ws.form.values, ws.form.d, ws.form.e, a.n, -exponent, values, team);
  }
  return info_ok;
}

static void svdvals_float32(const MatrixView& a, float* values, int32_t* info, void* workspace, const Team& team) {
  const TallView tall = tall_view(a);
  switch (a.element) {
    case ElementType::float16: *info = svdvals_of<Float16>(tall, values, workspace, team); break;
    case ElementType::bfloat16: *info = svdvals_of<BFloat16>(tall, values, workspace, team); break;
    default: *info = svdvals_of<Float32>(tall, values, workspace, team);
  }
}

static void svdvals_float64(const MatrixView& a, double* values, int32_t* info, void* workspace, const Team& team) {
  *info = svdvals_of<Float64>(tall_view(a), values, workspace, team);
}
