// Stage `vectors`: singular vectors of a bidiagonal B = U' S V'^T, and the way back through the reflectors of `bidiagonal` and
// `band` to those of the matrix, A = (Q1 Q2 U') S (P1 P2 V')^T. For a float32 matrix that goes through two stages; m >= n > 128.
//
// Vectors of B in double, one to a lane, by twisted factorization (Parlett and Dhillon 1997; LAPACK's xLAR1V): with mu = sigma^2,
// q_i = d_i^2, and B^T B - mu I factored from both ends in differential form,
//
//   s_1 = -mu,       p_i = q_i + s_i,          s_{i+1} = s_i e_i^2 / p_i - mu                 (pivots from the top)
//   t_n = q_n - mu,  w_i = e_{i-1}^2 + t_i,    t_{i-1} = t_i q_{i-1} / w_i - mu               (from the bottom)
//   gamma_i = s_i + t_i + mu,  k = argmin |gamma_i|,  v_k = 1,
//   v_i = -d_i e_i v_{i+1} / p_i  (i < k),     v_{i+1} = -d_i e_i v_i / w_{i+1}  (i >= k),    u = B v / |B v|
//
// and (B^T B - mu I) v = gamma_k e_k. Products and quotients only: v is the vector of a B whose entries are a few units off,
// which counts as 8 eps mu below (in the worst case it is n times that).
// Two such vectors are orthogonal to within the sum of their residuals over the difference of their mu, and u_i, u_j as well
// while kappa eps is small. Where
//
//   (|gamma_k| / |v| + 8 eps mu) / gap(mu) <= eps32   for every value, gap: to its neighbours,   and   sigma_n >= 2^-27 sigma_1
//
// holds (eps of double, eps32 of float32), U' and V' are orthogonal to a unit of float32, and what follows is a product of
// reflectors in float32: the result is as backward stable as LAPACK's. Equal and vanishing values are for the caller:
// info_close. Values of float32 matrices rarely are that close: 1e-8 of themselves, where n random ones lie 1 / n apart.
//
// The way back: a strip of columns at a time. The reflectors of the chase go in groups of sweeps, so that a window of the strip
// stays in the first level cache; those of `band` in blocks, X <- X - U (V^T X), with the kernel of `band` itself.
// 2 n^2 flops a column and side for the chase, 4 (rows - n / 2) n for the band; 2 divisions and some 30 flops an entry before.
// Measured on an AMD Zen 5, AVX-512, one thread, n = 768: 42 ms, of which 10 for band and chase, 2 for the vectors of B, 18 and 9
// for the way back through the chase and the band (100 and 195 GF/s); 2.4 ms at n = 256.

// x (b rows of a strip) <- (I - tau v v^T) x
template <typename T>
static inline __attribute__((always_inline)) void reflect_rows(T* x, const T* v, T tau) {
  constexpr int b = Blocks<T>::block, ld = Blocks<T>::strip_columns;
  typedef Simd<T> S;
  SF_UNROLL
  for (int c = 0; c < Blocks<T>::strip_vectors; ++c) {
    typename S::Vector row[b], z[4] = {};
    SF_UNROLL
    for (int r = 0; r < b; ++r) {
      row[r] = S::load(x + r * ld + c * S::lanes);
      z[r % 4] += v[r] * row[r];
    }
    const typename S::Vector sum = tau * ((z[0] + z[1]) + (z[2] + z[3]));
    SF_UNROLL
    for (int r = 0; r < b; ++r) S::store(x + r * ld + c * S::lanes, row[r] - v[r] * sum);
  }
}

// x <- Q2 x or P2 x for one strip, the last sweep first. Step p of a sweep meets steps p and p - 1 of later sweeps of its group,
// which are done by then.
template <typename T>
static void undo_chase(const Kept<T>& kept, const KeptSide<T>& side, T* x) {
  constexpr int b = Blocks<T>::block, ld = Blocks<T>::strip_columns, group = b;
  const int64_t n = kept.n;
  for (int64_t last = n - 2; last >= 0; last -= group) {
    const int64_t first = last - group + 1 > 0 ? last - group + 1 : 0;
    for (int64_t p = 0; first + 1 + p * b < n; ++p)
      for (int64_t i = last; i >= first; --i) {
        const int64_t row = i + 1 + p * b, at = kept.place(i, p);
        if (row < n) reflect_rows(x + row * ld, side.chase + at * b, side.tau[at]);
      }
  }
}

// x <- Q1 x or P1 x for one strip.
template <typename T>
static void undo_band(const KeptSide<T>& side, int64_t blocks, T* x) {
  constexpr int b = Blocks<T>::block, ld = Blocks<T>::strip_columns, vectors = Blocks<T>::strip_vectors;
  alignas(64) T w[b * ld], sum[b * ld];
  for (int64_t k = blocks - 1; k >= 0; --k) {
    const int64_t first = side.first_row(k), from = k < blocks - 1 ? first * b : 0;
    const T* const v = side.block_of(side.v, k) + first * b;
    if (k == blocks - 1)
      update_strip<0, true>(vectors, x + first * ld, side.rows - first, v, w, v, w, v, sum);
    else
      update_strip<1, true>(vectors, x + first * ld, side.rows - first, side.block_of(side.u, k + 1) + from, w, v, w, v, sum);
    for (int i = 0; i < b * ld; ++i) w[i] = sum[i];
  }
  if (blocks == 0) return;
  const int64_t first = side.first_row(0);
  update_strip<1, false>(vectors, x + first * ld, side.rows - first, side.block_of(side.u, 0) + first * b, w,
                         static_cast<const T*>(nullptr), w, static_cast<const T*>(nullptr), static_cast<T*>(nullptr));
}

struct TwistedWorkspace {
  double *q, *e2, *de;    // n: d_i^2, e_i^2, d_i e_i
  double *s, *down, *up;  // n x lanes: then v, and the quotients -d_i e_i / p_i and -d_{i-1} e_{i-1} / w_i
};

// The vectors of `mu`, one to a lane, into columns of v and u (rows ld apart). Returns |gamma| / |v|.
template <typename T>
static VectorD twisted_vectors(const TwistedWorkspace& ws, const double* d, const double* e, int64_t n, VectorD mu, T* v, T* u) {
  constexpr int ld = Blocks<T>::strip_columns, lanes = SimdD::lanes;
  typedef T Narrow __attribute__((vector_size(SF_VECTOR_BYTES / sizeof(double) * sizeof(T))));
  VectorD s = -mu;
  for (int64_t i = 0; i < n; ++i) {
    SimdD::store(ws.s + i * lanes, s);
    const VectorD inverse = 1 / (ws.q[i] + s + smallest_pivot);
    SimdD::store(ws.down + i * lanes, -ws.de[i] * inverse);
    s = s * ws.e2[i] * inverse - mu;
  }
  VectorD t = ws.q[n - 1] - mu, k = SimdD::broadcast(static_cast<double>(n - 1));
  VectorD gamma = SimdD::load(ws.s + (n - 1) * lanes) + t + mu;
  for (int64_t i = n - 1; i > 0; --i) {
    const VectorD inverse = 1 / (ws.e2[i - 1] + t + smallest_pivot);
    SimdD::store(ws.up + i * lanes, -ws.de[i - 1] * inverse);
    t = t * ws.q[i - 1] * inverse - mu;
    const VectorD here = SimdD::load(ws.s + (i - 1) * lanes) + t + mu;
    const auto smaller = magnitude(here) < magnitude(gamma);
    gamma = smaller ? here : gamma;
    k = smaller ? SimdD::broadcast(static_cast<double>(i - 1)) : k;
  }
  double* const x = ws.s;
  VectorD z{};
  for (int64_t i = n - 1; i >= 0; --i) {
    const VectorD at = SimdD::broadcast(static_cast<double>(i));
    z = at < k ? SimdD::load(ws.down + i * lanes) * z : at == k ? SimdD::broadcast(1) : VectorD{};
    SimdD::store(x + i * lanes, z);
  }
  VectorD squared{}, image{};
  for (int64_t i = 0; i < n; ++i) {
    const VectorD at = SimdD::broadcast(static_cast<double>(i));
    const VectorD above = SimdD::load(x + i * lanes);
    z = at > k ? SimdD::load(ws.up + i * lanes) * z : above;
    SimdD::store(x + i * lanes, z);
    squared += z * z;
  }
  VectorD norm;
  for (int l = 0; l < lanes; ++l) norm[l] = __builtin_sqrt(squared[l]);
  for (int64_t i = 0; i < n; ++i) {
    const VectorD right = i + 1 < n ? e[i] * SimdD::load(x + (i + 1) * lanes) : VectorD{};
    const VectorD y = d[i] * SimdD::load(x + i * lanes) + right;
    SimdD::store(ws.down + i * lanes, y);
    image += y * y;
  }
  VectorD image_norm;
  for (int l = 0; l < lanes; ++l) image_norm[l] = __builtin_sqrt(image[l]);
  const VectorD scale_v = 1 / norm, scale_u = 1 / image_norm;
  for (int64_t i = 0; i < n; ++i) {
    *reinterpret_cast<Narrow*>(v + i * ld) = __builtin_convertvector(SimdD::load(x + i * lanes) * scale_v, Narrow);
    *reinterpret_cast<Narrow*>(u + i * ld) = __builtin_convertvector(SimdD::load(ws.down + i * lanes) * scale_u, Narrow);
  }
  return magnitude(gamma) * scale_v;
}

template <typename T>
struct VectorsWorkspaces {
  TwoStageWorkspaces<T> two_stage;
  Kept<T> kept;
  TwistedWorkspace twisted;  // s, down, up: for each strip
  Strips<T> u, v;
  double *values, *worst;  // n; for each strip, what has to be at most 1

  static KeptSide<T> take_side(Arena& arena, int64_t rows, int64_t blocks, int64_t steps, int64_t shift) {
    constexpr int b = Blocks<T>::block;
    KeptSide<T> side;
    side.v = arena.take<T>(blocks * rows * b);
    side.u = arena.take<T>(blocks * rows * b);
    side.chase = arena.take<T>(steps * b);
    side.tau = arena.take<T>(steps);
    side.rows = rows;
    side.shift = shift;
    return side;
  }

  VectorsWorkspaces(Arena& arena, int64_t m, int64_t n) : two_stage(arena, m, n) {
    constexpr int b = Blocks<T>::block;
    const int64_t blocks = two_stage.padded_n / b, strips = Strips<T>::count(n), steps = Kept<T>::steps_of(n - 1);
    kept.n = n;
    kept.left = take_side(arena, two_stage.padded_m, blocks, steps, 0);
    kept.right = take_side(arena, two_stage.padded_n, blocks - 1, steps, 1);
    double** const columns[] = {&twisted.q, &twisted.e2, &twisted.de, &values};
    for (double** column : columns) *column = arena.take<double>(n);
    double** const lanes[] = {&twisted.s, &twisted.down, &twisted.up};
    for (double** lane : lanes) *lane = arena.take<double>(strips * n * SimdD::lanes);
    worst = arena.take<double>(strips);
    // The chase reaches over the last row by less than b.
    u = {arena.take<T>(Strips<T>::size(two_stage.padded_m + b, n)), two_stage.padded_m + b};
    v = {arena.take<T>(Strips<T>::size(two_stage.padded_n + b, n)), two_stage.padded_n + b};
  }
};

static std::size_t vectors_workspace_bytes(int64_t rows, int64_t cols) {
  const TallView a = tall_view(MatrixView{nullptr, ElementType::float32, rows, cols, 0, 0});
  Arena arena{nullptr, 0};
  VectorsWorkspaces<float>(arena, a.m, a.n);
  return arena.used;
}

// The distance of values[j]^2 to its nearest neighbour, and to zero.
static inline double gap_of_square(const double* values, int64_t n, int64_t j) {
  const double x = values[j], below = j + 1 < n ? values[j + 1] : 0;
  const double gap = (x - below) * (x + below);
  const double above = j > 0 ? (values[j - 1] - x) * (values[j - 1] + x) : gap;
  return above < gap ? above : gap;
}

// The columns of strip `s`: of B, then of A.
template <typename T>
static void vectors_of_strip(const VectorsWorkspaces<T>& ws, int64_t n, int64_t s) {
  constexpr int ld = Blocks<T>::strip_columns, lanes = SimdD::lanes;
  constexpr double eps = 0x1p-52, unit = sizeof(T) == sizeof(float) ? 0x1p-23 : 0x1p-52;
  const BidiagonalForm& form = ws.two_stage.form;
  T *const u = ws.u.strip(s), *const v = ws.v.strip(s);
  for (int64_t i = n * ld; i < ws.u.rows * ld; ++i) u[i] = 0;
  for (int64_t i = n * ld; i < ws.v.rows * ld; ++i) v[i] = 0;
  TwistedWorkspace twisted = ws.twisted;
  double** const own[] = {&twisted.s, &twisted.down, &twisted.up};
  for (double** array : own) *array += s * n * lanes;
  double worst = 0;
  for (int r = 0; r < ld; r += lanes) {
    VectorD mu;
    for (int l = 0; l < lanes; ++l) {
      const int64_t j = s * ld + r + l < n ? s * ld + r + l : n - 1;
      mu[l] = ws.values[j] * ws.values[j];
    }
    const VectorD residual = twisted_vectors(twisted, form.d, form.e, n, mu, v + r, u + r);
    for (int l = 0; l < lanes && s * ld + r + l < n; ++l) {
      const double part = (residual[l] + 8 * eps * mu[l]) / (unit * gap_of_square(ws.values, n, s * ld + r + l));
      worst = part <= worst ? worst : part;  // a NaN stays
    }
  }
  ws.worst[s] = worst;
  if (!(worst <= 1)) return;
  undo_chase(ws.kept, ws.kept.left, u);
  undo_chase(ws.kept, ws.kept.right, v);
  const int64_t blocks = ws.two_stage.padded_n / Blocks<T>::block;
  undo_band(ws.kept.left, blocks, u);
  undo_band(ws.kept.right, blocks - 1, v);
}

// Strips -> rows x n, row by row.
template <typename T>
static void store_strips(const Strips<T>& strips, int64_t rows, int64_t n, T* out, const Team& team) {
  constexpr int ld = Blocks<T>::strip_columns;
  constexpr int64_t piece_rows = 64;
  parallel_for(team, (rows + piece_rows - 1) / piece_rows, [&](int64_t piece) {
    const int64_t last = (piece + 1) * piece_rows < rows ? (piece + 1) * piece_rows : rows;
    for (int64_t i = piece * piece_rows; i < last; ++i)
      for (int64_t j = 0; j < n; j += ld) {
        const int64_t count = n - j < ld ? n - j : ld;
        for (int64_t c = 0; c < count; ++c) out[i * n + j + c] = strips.at(i, j)[c];
      }
  });
}

template <typename Element>
static int32_t vectors_of(const TallView& a, float* u, float* v, void* workspace, const Team& team) {
  const typename Element::Bits largest = largest_magnitude<Element>(a);
  if (largest >= Element::infinity) return info_nonfinite;
  if (largest == 0) return info_close;
  Arena arena{static_cast<char*>(workspace), 0};
  const VectorsWorkspaces<float> ws(arena, a.m, a.n);
  const TwoStageWorkspaces<float>& stages = ws.two_stage;
  if (!bidiagonalize<Element>(stages, a, scale_exponent(Element::value(largest)), team, nullptr, &ws.kept)) return info_cancelled;
  const int64_t n = a.n;
  bidiagonal_values(stages.form.values, stages.form.d, stages.form.e, n, 0, ws.values, team);
  if (ws.values[n - 1] < 0x1p-27 * ws.values[0]) return info_close;
  for (int64_t i = 0; i < n; ++i) {
    const double d = stages.form.d[i], e = i + 1 < n ? stages.form.e[i] : 0;
    ws.twisted.q[i] = d * d;
    ws.twisted.e2[i] = e * e;
    ws.twisted.de[i] = d * e;
  }
  const int64_t strips = Strips<float>::count(n);
  parallel_for(team, strips, [&](int64_t s) { vectors_of_strip(ws, n, s); });
  for (int64_t s = 0; s < strips; ++s)
    if (!(ws.worst[s] <= 1)) return info_close;
  store_strips(ws.u, a.m, n, u, team);
  store_strips(ws.v, n, n, v, team);
  return info_ok;
}

static int32_t vectors(const MatrixView& a, float* u, float* v, void* workspace, const Team& team) {
  const TallView tall = tall_view(a);
  switch (a.element) {
    case ElementType::float16: return vectors_of<Float16>(tall, u, v, workspace, team);
    case ElementType::bfloat16: return vectors_of<BFloat16>(tall, u, v, workspace, team);
    default: return vectors_of<Float32>(tall, u, v, workspace, team);
  }
}
