// How the workspace of each path is laid out.

struct BidiagonalForm {
  double *d, *e;  // n, n - 1
  ValuesWorkspace values;

  BidiagonalForm(Arena& arena, int64_t n) : d(arena.take<double>(n)), e(arena.take<double>(n)), values(arena, n) {}
};

template <typename T>
static ReduceWorkspace<T> take_reduce(Arena& arena, int64_t m, int64_t n) {
  constexpr int b = Blocks<T>::block;
  const int64_t padded_n = round_up(n, b);
  ReduceWorkspace<T> ws;
  ws.chunk_rows = m < reduce_chunk_rows ? m : reduce_chunk_rows;
  ws.r = arena.take<double>(triangle_size<T>(padded_n));
  ws.c = {arena.take<T>(Strips<T>::size(ws.chunk_rows, padded_n)), ws.chunk_rows};
  ws.w = {arena.take<T>(Strips<T>::size(b, padded_n)), b};
  for (ReducePanel<T>& panel : ws.panel) {
    panel.v = arena.take<T>(ws.chunk_rows * b);
    panel.u = arena.take<T>(ws.chunk_rows * b);
    panel.t = arena.take<double>(b * b);
  }
  return ws;
}

static DirectWorkspace take_direct(Arena& arena, int64_t rows, int64_t n) {
  DirectWorkspace ws;
  ws.ld = leading_dimension<double>(n);
  ws.a = arena.take<double>(rows * ws.ld);
  double** const wide[] = {&ws.w, &ws.u, &ws.sum, &ws.lost, &ws.part};
  for (double** row : wide) *row = arena.take<double>(ws.ld);
  double** const tall[] = {&ws.v, &ws.y, &ws.v_next, &ws.y_next};
  for (double** col : tall) *col = arena.take<double>(rows);
  return ws;
}

// Small matrices whose values are float32.
struct DirectWorkspaces {
  BidiagonalForm form;
  ReduceWorkspace<double> reduce;
  DirectWorkspace direct;

  DirectWorkspaces(Arena& arena, int64_t m, int64_t n) : form(arena, n), reduce() {
    if (reduce_first(m, n)) reduce = take_reduce<double>(arena, m, n);
    direct = take_direct(arena, reduce_first(m, n) ? n : m, n);
  }
};

// Small matrices whose values are float64.
struct PreciseWorkspaces {
  BidiagonalForm form;
  DirectReduceWorkspace reduce;
  DirectWorkspace direct;  // its matrix is the triangle of `reduce`
  int64_t* order;          // n

  PreciseWorkspaces(Arena& arena, int64_t m, int64_t n)
      : form(arena, n), reduce(), direct(take_direct(arena, reduce_first(m, n) ? n : m, n)), order(arena.take<int64_t>(n)) {
    if (!reduce_first(m, n)) return;
    reduce.ld = direct.ld;
    reduce.r = direct.a;
    reduce.chunk_rows = direct_chunk_rows(m, reduce.ld * static_cast<int64_t>(sizeof(double)));
    reduce.chunk = arena.take<double>(reduce.chunk_rows * reduce.ld);
    reduce.v = arena.take<double>(reduce.chunk_rows);
    reduce.v_next = arena.take<double>(reduce.chunk_rows);
    double** const wide[] = {&reduce.w, &reduce.sum, &reduce.lost, &reduce.part};
    for (double** row : wide) *row = arena.take<double>(reduce.ld);
  }
};

template <typename Scalar>
struct SmallOf {
  typedef DirectWorkspaces Workspaces;
};
template <>
struct SmallOf<double> {
  typedef PreciseWorkspaces Workspaces;
};

template <typename T>
struct TwoStageWorkspaces {
  BidiagonalForm form;
  ReduceWorkspace<T> reduce;
  BandWorkspace<T> band;
  double* storage;  // of the band
  int64_t* done;    // of the chase
  int64_t padded_m, padded_n;

  TwoStageWorkspaces(Arena& arena, int64_t m, int64_t n) : form(arena, n), reduce(), band() {
    constexpr int b = Blocks<T>::block;
    padded_m = round_up(reduce_first(m, n) ? n : m, b);
    padded_n = round_up(n, b);
    band.top = arena.take<double>(b * b);
    band.t = arena.take<double>(b * b);
    if (reduce_first(m, n)) reduce = take_reduce<T>(arena, m, n);
    band.a = {arena.take<T>(Strips<T>::size(padded_m, padded_n)), padded_m};
    band.w = {arena.take<T>(Strips<T>::size(b, padded_n)), b};
    band.z = {arena.take<T>(Strips<T>::size(b, padded_n)), b};
    T** const tall[] = {&band.v, &band.v_next, &band.y, &band.u};
    for (T** col : tall) *col = arena.take<T>(padded_m * b);
    band.q = arena.take<T>(padded_n * b);
    band.m = arena.take<T>(b * b);
    storage = arena.take<double>(BandStorage<b>::size(padded_n));
    done = arena.take<int64_t>(n / group_sweeps + 1);
  }
};

struct GramWorkspaces {
  TwoStageWorkspaces<double> square;  // its matrix is G, then R
  GramWorkspace gram;
  double* values;  // n, of the shifted matrix

  GramWorkspaces(Arena& arena, int64_t m, int64_t n) : square(arena, n, n) {
    const int64_t rows = m < gram_rows ? m : gram_rows;
    gram.a = {arena.take<double>(Strips<double>::size(rows, square.padded_n)), rows};
    gram.shift = arena.take<double>(1);
    values = arena.take<double>(n);
  }
};
