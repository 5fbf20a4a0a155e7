// The pipeline of one matrix: load -> reduce (if tall) -> bidiagonal -> values.

// Householder QR first pays when m > 5/3 n (Chan 1982; LAPACK xGESDD's crossover is 11/6).
static inline bool reduce_first(int64_t m, int64_t n) { return 3 * m > 5 * n; }

// Hands out consecutive aligned pieces; with base == nullptr it only adds up their size.
struct Arena {
  char* base;
  std::size_t used;

  template <typename U>
  U* take(int64_t count) {
    char* p = base ? base + used : nullptr;
    used += (static_cast<std::size_t>(count) * sizeof(U) + workspace_alignment - 1) / workspace_alignment * workspace_alignment;
    return reinterpret_cast<U*>(p);
  }
};

template <typename T>
struct SvdvalsWorkspace {
  ReduceWorkspace<T> reduce;
  BidiagonalWorkspace<T> bidiagonal;
  ValuesWorkspace values;
  double *d, *e;
  std::size_t bytes;

  SvdvalsWorkspace(char* base, int64_t m, int64_t n) : reduce(), bidiagonal() {
    Arena arena{base, 0};
    const int64_t square_m = reduce_first(m, n) ? n : m;
    const int64_t ld = leading_dimension<T>(n);
    if (reduce_first(m, n)) {
      reduce.ld = ld;
      reduce.ldr = n;
      reduce.r = arena.take<double>(n * n);
      reduce.chunk_rows = reduce_chunk_rows(m, ld * static_cast<int64_t>(sizeof(T)));
      reduce.chunk = arena.take<T>(reduce.chunk_rows * ld);
      reduce.v = arena.take<T>(reduce.chunk_rows);
      reduce.v_next = arena.take<T>(reduce.chunk_rows);
      reduce.w = arena.take<T>(ld);
      reduce.sum = arena.take<T>(ld);
      reduce.part = arena.take<T>(ld);
    }
    bidiagonal.ld = ld;
    bidiagonal.a = arena.take<T>(square_m * ld);
    T** const rows[] = {&bidiagonal.w, &bidiagonal.u, &bidiagonal.sum, &bidiagonal.part};
    for (T** row : rows) *row = arena.take<T>(ld);
    T** const cols[] = {&bidiagonal.v, &bidiagonal.y, &bidiagonal.v_next, &bidiagonal.y_next};
    for (T** col : cols) *col = arena.take<T>(square_m);
    d = arena.take<double>(n);
    e = arena.take<double>(n);
    double** const diagonals[] = {&values.q, &values.e2, &values.qe2, &values.squares};
    for (double** diagonal : diagonals) *diagonal = arena.take<double>(n);
    values.x = arena.take<double>(round_up(n, shifts));
    values.below = arena.take<int64_t>(round_up(n, shifts));
    values.at = arena.take<Derivatives>(round_up(n, shifts));
    values.cells = arena.take<Cell>(n);
    values.next = arena.take<Cell>(n);
    bytes = arena.used;
  }
};

// A float32 bidiagonalization errs by up to sqrt(n) / 2 eps sigma_1 where many values are equal (3.2 eps seen at n = 64), more
// than the 2 eps promised up to this size. Such matrices are computed in double.
static constexpr int64_t promoted_size = 128;

template <typename Scalar>
static inline bool promoted(const TallView& a) {
  return sizeof(Scalar) < sizeof(double) && a.n <= promoted_size;
}

template <typename Scalar>
static std::size_t svdvals_workspace_bytes(int64_t rows, int64_t cols, int) {
  const TallView a = tall_view(MatrixView{nullptr, ElementType::float32, rows, cols, 0, 0});
  return promoted<Scalar>(a) ? SvdvalsWorkspace<double>(nullptr, a.m, a.n).bytes
                             : SvdvalsWorkspace<Scalar>(nullptr, a.m, a.n).bytes;
}

// T is what is computed in, Element what A holds, Scalar what is returned.
template <typename T, typename Element, typename Scalar>
static void svdvals_in(const TallView& a, double largest, Scalar* values, void* workspace, const Team& team) {
  const Scale<T> scale = scale_for<T>(largest);
  SvdvalsWorkspace<T> ws(static_cast<char*>(workspace), a.m, a.n);
  BidiagonalWorkspace<T>& square = ws.bidiagonal;

  int64_t m = a.m;
  if (reduce_first(a.m, a.n)) {
    for (int64_t i = 0; i < a.n * ws.reduce.ldr; ++i) ws.reduce.r[i] = 0;
    for (int64_t first = 0; first < a.m; first += ws.reduce.chunk_rows) {
      const int64_t rows = a.m - first < ws.reduce.chunk_rows ? a.m - first : ws.reduce.chunk_rows;
      load_rows<T, Element>(a, first, rows, scale, ws.reduce.chunk, ws.reduce.ld);
      reduce_fold(ws.reduce, rows, a.n);
    }
    m = a.n;
    for (int64_t i = 0; i < m; ++i)
      for (int64_t j = 0; j < square.ld; ++j)
        square.a[i * square.ld + j] = j >= i && j < a.n ? static_cast<T>(ws.reduce.r[i * ws.reduce.ldr + j]) : T(0);
  } else {
    load_rows<T, Element>(a, 0, m, scale, square.a, square.ld);
  }
  bidiagonalize(square, m, a.n, ws.d, ws.e);
  bidiagonal_values(ws.values, ws.d, ws.e, a.n, -scale.exponent, values, team);
}

template <typename Element, typename Scalar>
static int32_t svdvals_of(const TallView& a, Scalar* values, void* workspace, const Team& team) {
  const typename Element::Bits largest = largest_magnitude<Element>(a);
  if (largest >= Element::infinity) {
    for (int64_t i = 0; i < a.n; ++i) values[i] = static_cast<Scalar>(__builtin_nan(""));
    return info_nonfinite;
  }
  if (promoted<Scalar>(a))
    svdvals_in<double, Element>(a, Element::value(largest), values, workspace, team);
  else
    svdvals_in<Scalar, Element>(a, Element::value(largest), values, workspace, team);
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
