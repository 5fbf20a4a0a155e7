// A tracked look at one matrix: all that follows from Z = M X, M = A^T A, X = [V, P Omega], but for Z itself (products.inl).
// The mathematics is that of spectral_fast/subspace.py (Ritz values) and spectral_fast/bulk.py (sums over the rest):
//
//   H = V'^T Omega,  P Omega = Omega - V' H           V': V without its last vector, which is a random one
//   T = V^T Z_V = L L^T,  G = Z_V^T Z_V,  S = V^T V
//   L^-1 G L^-T = W diag(mu) W^T                      symmetric.inl
//   C = L^-T W,  theta_i = 1 / (C_i^T S C_i)          Rayleigh quotients half an iteration earlier
//   V <- Z_V C diag(mu)^-1/2                          and its last vector: fresh, orthogonalized against the others
//
// and of the probes, with K = V'^T Y for Y = [change, image] of those for the drift, sums of squares of P Y, and the columns' dot
// products and norms of the others.
//
// Everything tall is cut into pieces of `panel_rows` rows: sums of one piece in T, those of the pieces in double and in order, so
// that no bit depends on who computed them. What is s x s is in double.
//
// cost   8 n s^2 flops for T, G, S and V, 4 n s p for P Omega, 16 n s d for the drift (s, p padded to registers), 20 s^3 in
//        double. n = 768, s = 32, p = 16, d = 4, one thread: 9 Mflop beside 113 of the product of a square matrix.

template <typename T>
struct LookWorkspace {
  int64_t n, s, padded, probes, width, pair;  // padded: s in whole units; width of X; pair: of Y, likewise padded
  int64_t pieces, square;                     // square: leading dimension of what is s x s in double
  T *x, *z, *next, *y;                        // n rows each, width, width, padded, pair
  T* parts;                                   // what a piece sums up, part_elements each
  double* sums;                               // as many of the pieces' short sums, most_sums each
  T *h, *h_pair, *k, *turn;                   // padded rows: probes, pair, pair, padded
  double* total;                              // of the parts
  double *t, *g, *b, *w, *mu, *theta, *h_fresh;
  SymmetricWorkspace eigen;

  static constexpr int most_sums = 4;
  inline int64_t part_elements() const { return padded * (3 * padded + (probes > pair ? probes : pair)) + padded; }

  static LookWorkspace of(const LookShape& shape, void* block, std::size_t* bytes) {
    constexpr int64_t unit = Panels<T>::unit;
    LookWorkspace ws{};
    ws.n = shape.n, ws.s = shape.vectors;
    ws.padded = round_up(ws.s, unit), ws.probes = round_up(shape.probes, unit);
    ws.pair = shape.probes ? round_up(2 * shape.drift_probes, unit) : 0;
    ws.width = ws.padded + ws.probes;
    ws.pieces = (ws.n + panel_rows - 1) / panel_rows;
    ws.square = round_up(ws.s, SimdD::lanes);
    Arena arena{static_cast<char*>(block), 0};
    ws.x = arena.take<T>(ws.n * ws.width);
    ws.z = arena.take<T>(ws.n * ws.width);
    ws.next = arena.take<T>(ws.n * ws.padded);
    ws.y = arena.take<T>(ws.n * ws.pair);
    ws.parts = arena.take<T>(ws.pieces * ws.part_elements());
    ws.sums = arena.take<double>(ws.pieces * most_sums);
    ws.h = arena.take<T>(ws.padded * ws.probes);
    ws.h_pair = arena.take<T>(ws.padded * ws.pair);
    ws.k = arena.take<T>(ws.padded * ws.pair);
    ws.turn = arena.take<T>(ws.padded * ws.padded);
    ws.total = arena.take<double>(ws.part_elements());
    ws.t = arena.take<double>(ws.s * ws.square), ws.g = arena.take<double>(ws.s * ws.square);
    ws.b = arena.take<double>(ws.s * ws.square), ws.w = arena.take<double>(ws.s * ws.square);
    ws.mu = arena.take<double>(ws.square), ws.theta = arena.take<double>(ws.square);
    ws.h_fresh = arena.take<double>(ws.padded);
    ws.eigen = SymmetricWorkspace::take(arena, ws.s, ws.square);
    if (bytes) *bytes = arena.used;
    return ws;
  }

  inline int64_t first_row(int64_t piece) const { return piece * panel_rows; }
  inline int64_t rows(int64_t piece) const { return n - first_row(piece) < panel_rows ? n - first_row(piece) : panel_rows; }
  inline T* part(int64_t piece) const { return parts + piece * part_elements(); }

  // The first `count` elements of the parts, added up in order.
  inline void add_parts(int64_t count) const {
    for (int64_t i = 0; i < count; ++i) total[i] = parts[i];
    for (int64_t p = 1; p < pieces; ++p)
      for (int64_t i = 0; i < count; ++i) total[i] += part(p)[i];
  }
  inline double add_sums(int which) const {
    double sum = 0;
    for (int64_t p = 0; p < pieces; ++p) sum += sums[p * most_sums + which];
    return sum;
  }
};

template <typename T>
static LookSizes look_sizes(const LookShape& shape) {
  std::size_t bytes = 0;
  const LookWorkspace<T> ws = LookWorkspace<T>::of(shape, nullptr, &bytes);
  return {ws.pieces, ws.width, ws.padded, bytes};
}

template <typename T>
static LookArrays<T> look_arrays(const LookShape& shape, void* block) {
  const LookWorkspace<T> ws = LookWorkspace<T>::of(shape, block, nullptr);
  return {ws.x, ws.z, ws.next};
}

template <typename T>
static inline double sum_of_squares(const T* p, int64_t count) {
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += static_cast<double>(p[i]) * p[i];
  return sum;
}

// V, padded, and H's part.
template <typename T>
static void look_gather(const LookShape& shape, const LookInput<T>& in, const LookWorkspace<T>& ws, int64_t piece) {
  const int64_t first = ws.first_row(piece), rows = ws.rows(piece);
  for (int64_t i = first; i < first + rows; ++i) {
    T* const to = ws.x + i * ws.width;
    for (int64_t j = 0; j < ws.s; ++j) to[j] = in.vectors[i * ws.s + j];
    for (int64_t j = ws.s; j < ws.padded; ++j) to[j] = 0;
    for (int64_t j = 0; j < shape.probes; ++j) to[ws.padded + j] = in.probes[i * shape.probes + j];
    for (int64_t j = shape.probes; j < ws.probes; ++j) to[ws.padded + j] = 0;
  }
  const T* const x = ws.x + first * ws.width;
  Panels<T>::inner(x, ws.width, ws.padded, x + ws.padded, ws.width, ws.probes, rows, ws.part(piece), ws.probes);
}

// -H, without the last vector of V; and what the probes of the drift get back of it, twice.
template <typename T>
static void look_overlap(const LookShape& shape, const LookWorkspace<T>& ws) {
  ws.add_parts(ws.padded * ws.probes);
  const int64_t drift = shape.drift_probes, trace = shape.probes - drift;
  for (int64_t i = 0; i < ws.padded; ++i) {
    const bool kept = i < ws.s - 1;
    for (int64_t j = 0; j < ws.probes; ++j) ws.h[i * ws.probes + j] = kept ? static_cast<T>(-ws.total[i * ws.probes + j]) : 0;
    for (int64_t j = 0; j < ws.pair; ++j)
      ws.h_pair[i * ws.pair + j] = j < 2 * drift ? -ws.h[i * ws.probes + trace + j % drift] : 0;
  }
}

template <typename T>
static void look_project(const LookWorkspace<T>& ws, int64_t piece) {
  T* const x = ws.x + ws.first_row(piece) * ws.width;
  Panels<T>::update(x, ws.width, ws.h, ws.probes, ws.padded, ws.rows(piece), ws.probes, x + ws.padded, ws.width);
}

// The parts of T, G and S; with `bulk` those of K and the probes' sums as well.
template <typename T>
static void look_inner(const LookShape& shape, const LookInput<T>& in, const LookWorkspace<T>& ws, bool bulk, int64_t piece) {
  const int64_t first = ws.first_row(piece), rows = ws.rows(piece);
  // Of a product that was repeated there are vectors alone.
  const int64_t width = bulk ? ws.width : ws.padded;
  const T *const x = (bulk ? ws.x : ws.next) + first * width, *const z = ws.z + first * width;
  T* const part = ws.part(piece);
  Panels<T>::inner(x, width, ws.padded, z, width, ws.padded, rows, part, ws.padded);
  Panels<T>::inner(z, width, ws.padded, z, width, ws.padded, rows, part + ws.padded * ws.padded, ws.padded);
  Panels<T>::inner(x, width, ws.padded, x, width, ws.padded, rows, part + 2 * ws.padded * ws.padded, ws.padded);
  if (!bulk || shape.probes == 0) return;

  const int64_t drift = shape.drift_probes, trace = shape.probes - drift;
  T* const y = ws.y + first * ws.pair;
  typedef Simd<T> S;
  double* const sums = ws.sums + piece * LookWorkspace<T>::most_sums;
  sums[0] = sums[1] = sums[2] = 0;
  for (int64_t v = 0; v < trace; v += S::lanes) {
    typename S::Vector on = {}, images = {}, sizes = {};
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t at = i * width + ws.padded + v;
      const typename S::Vector probe = S::load(x + at), image = S::load(z + at);
      on += probe * image, images += image * image, sizes += probe * probe;
    }
    for (int64_t l = 0; l < S::lanes && v + l < trace; ++l) sums[0] += on[l], sums[1] += images[l], sums[2] += sizes[l];
  }
  for (int64_t i = 0; i < rows; ++i) {
    const T* const image = z + i * width + ws.padded + trace;
    T* const to = y + i * ws.pair;
    for (int64_t j = 0; j < drift; ++j) {
      to[j] = image[j] - in.reference[(first + i) * drift + j];
      to[drift + j] = image[j];
    }
    for (int64_t j = 2 * drift; j < ws.pair; ++j) to[j] = 0;
  }
  Panels<T>::update(z, width, ws.h_pair, ws.pair, ws.padded, rows, ws.pair, y, ws.pair);
  Panels<T>::inner(x, width, ws.padded, y, ws.pair, ws.pair, rows, part + 3 * ws.padded * ws.padded, ws.pair);
}

// T, G, S -> mu, theta, C; how much that tells.
template <typename T>
static LookStatus look_ritz(const LookShape& shape, const LookWorkspace<T>& ws, bool bulk, LookResult* result) {
  const int64_t s = ws.s, ld = ws.square;
  const double* const total = ws.total;
  ws.add_parts(3 * ws.padded * ws.padded + (bulk && shape.probes ? ws.padded * ws.pair : 0));
  if (bulk && shape.probes) {
    for (int64_t i = 0; i < ws.padded; ++i)
      for (int64_t j = 0; j < ws.pair; ++j)
        ws.k[i * ws.pair + j] = i < s - 1 ? static_cast<T>(-total[3 * ws.padded * ws.padded + i * ws.pair + j]) : 0;
  }
  double inside = 0, directions = 0, check = 0, largest = 0;
  for (int64_t i = 0; i < s; ++i)
    for (int64_t j = 0; j < ld; ++j) {
      const bool there = j < s;
      ws.t[i * ld + j] = there ? (total[i * ws.padded + j] + total[j * ws.padded + i]) / 2 : 0;
      ws.g[i * ld + j] = there ? total[(ws.padded + i) * ws.padded + j] : 0;
      check += (ws.t[i * ld + j] + ws.g[i * ld + j]) * 0;
    }
  for (int64_t i = 0; i + 1 < s; ++i) inside += ws.t[i * ld + i], directions += ws.g[i * ld + i];
  if (bulk && shape.probes) {
    const double probes = shape.probes - shape.drift_probes;
    const double off_trace = ws.add_sums(0) / probes - (result->energy - inside);
    const double off_size = ws.add_sums(2) / probes - static_cast<double>(ws.n - s + 1);
    result->squares_sum = directions + ws.add_sums(1) / probes - result->slope * off_trace - result->constant * off_size;
  }
  if (!(check == 0)) return LookStatus::not_finite;

  // T = L L^T, below the diagonal.
  for (int64_t i = 0; i < s; ++i) {
    for (int64_t j = 0; j <= i; ++j) {
      double sum = ws.t[i * ld + j];
      for (int64_t k = 0; k < j; ++k) sum -= ws.t[i * ld + k] * ws.t[j * ld + k];
      if (j < i) {
        ws.t[i * ld + j] = sum / ws.t[j * ld + j];
      } else {
        if (!(sum > 0)) return LookStatus::deficient;
        ws.t[i * ld + i] = __builtin_sqrt(sum);
      }
    }
  }
  solve_lower(ws.t, ws.g, s, ld);
  for (int64_t i = 0; i < s; ++i)
    for (int64_t j = 0; j < ld; ++j) ws.b[i * ld + j] = j < s ? ws.g[j * ld + i] : 0;
  solve_lower(ws.t, ws.b, s, ld);
  for (int64_t i = 0; i < s; ++i)
    for (int64_t j = 0; j < s; ++j) {
      const double size = __builtin_fabs(ws.b[i * ld + j]);
      largest = largest < size ? size : largest;
    }
  if (!(largest > 0)) return LookStatus::deficient;
  int exponent;
  static_cast<void>(__builtin_frexp(largest, &exponent));
  const double down = __builtin_ldexp(1.0, -exponent), up = __builtin_ldexp(1.0, exponent);
  for (int64_t i = 0; i < s; ++i)
    for (int64_t j = 0; j < ld; ++j) ws.w[i * ld + j] = j < s ? (ws.b[i * ld + j] + ws.b[j * ld + i]) / 2 * down : 0;
  if (!symmetric_eigen(s, ld, ws.w, ws.mu, ws.g, ws.eigen)) return LookStatus::deficient;

  // C = L^-T W, over the transpose of the rows that symmetric_eigen gives.
  double *const c = ws.b, *const theta = ws.theta;
  for (int64_t i = 0; i < s; ++i)
    for (int64_t j = 0; j < ld; ++j) c[i * ld + j] = j < s ? ws.g[j * ld + i] : 0;
  for (int64_t i = s; i-- > 0;) {
    for (int64_t k = i + 1; k < s; ++k) add_multiple(c + i * ld, -ws.t[k * ld + i], c + k * ld, 0, ld);
    const double inverse = 1 / ws.t[i * ld + i];
    for (int64_t j = 0; j < ld; ++j) c[i * ld + j] *= inverse;
  }
  for (int64_t j = 0; j < ld; ++j) theta[j] = 0;
  for (int64_t i = 0; i < s; ++i) {
    double* const image = ws.g;  // row i of S C
    for (int64_t j = 0; j < ld; ++j) image[j] = 0;
    for (int64_t k = 0; k < s; ++k) add_multiple(image, total[(2 * ws.padded + i) * ws.padded + k], c + k * ld, 0, ld);
    for (int64_t j = 0; j < ld; ++j) theta[j] += c[i * ld + j] * image[j];
  }
  for (int64_t j = 0; j < s; ++j) {
    if (!(ws.mu[j] > 0 && theta[j] > 0)) return LookStatus::deficient;
    ws.mu[j] *= up, theta[j] = 1 / theta[j];
  }
  for (int64_t i = 0; i < ws.padded; ++i)
    for (int64_t j = 0; j < ws.padded; ++j)
      ws.turn[i * ws.padded + j] = i < s && j < s ? static_cast<T>(c[i * ld + j] / __builtin_sqrt(ws.mu[j])) : 0;

  // The last vector may be a random one: the one before it says what comes next.
  for (int64_t j = 0; j < s; ++j) {
    const double mu = ws.mu[j], gained = mu > theta[j] ? mu - theta[j] : 0;
    double contraction = ws.mu[s - 2] / mu;
    contraction = contraction < 1 - look_smallest_gap ? contraction : 1 - look_smallest_gap;
    result->squares[j] = mu;
    result->pending[j] = gained / mu / 2 * contraction / (1 - contraction);
  }
  return LookStatus::good;
}

// V <- Z C, and the part of what the fresh vector has in common with it; with `bulk` the sums of squares of P Y.
template <typename T>
static void look_turn(const LookShape& shape, const LookInput<T>& in, const LookWorkspace<T>& ws, bool bulk, LookStatus status,
                      int64_t piece) {
  const int64_t first = ws.first_row(piece), rows = ws.rows(piece), width = bulk ? ws.width : ws.padded;
  T* const next = ws.next + first * ws.padded;
  if (status == LookStatus::good) {
    for (int64_t i = 0; i < rows * ws.padded; ++i) next[i] = 0;
    Panels<T>::update(ws.z + first * width, width, ws.turn, ws.padded, ws.padded, rows, ws.padded, next, ws.padded);
  } else if (bulk) {
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < ws.padded; ++j) next[i * ws.padded + j] = ws.x[(first + i) * width + j];
  }
  double* const sums = ws.sums + piece * LookWorkspace<T>::most_sums;
  if (bulk && shape.probes) {
    T* const y = ws.y + first * ws.pair;
    Panels<T>::update(ws.x + first * width, width, ws.k, ws.pair, ws.padded, rows, ws.pair, y, ws.pair);
    sums[0] = sums[1] = 0;
    typedef Simd<T> S;
    for (int64_t v = 0; v < ws.pair; v += S::lanes) {
      typename S::Vector sizes = {};
      for (int64_t i = 0; i < rows; ++i) {
        const typename S::Vector entries = S::load(y + i * ws.pair + v);
        sizes += entries * entries;
      }
      for (int64_t l = 0; l < S::lanes && v + l < 2 * shape.drift_probes; ++l) sums[v + l >= shape.drift_probes] += sizes[l];
    }
  }
  T* const part = ws.part(piece);
  for (int64_t j = 0; j < ws.padded; ++j) part[j] = 0;
  for (int64_t i = 0; i < rows; ++i) {
    const T fresh = in.fresh[first + i];
    for (int64_t j = 0; j < ws.padded; j += Simd<T>::lanes)
      Simd<T>::store(part + j, Simd<T>::load(part + j) + fresh * Simd<T>::load(next + i * ws.padded + j));
  }
  sums[2] = sum_of_squares(in.fresh + first, rows);
}

template <typename T>
static void look_drift(const LookWorkspace<T>& ws, LookResult* result) {
  result->drift = __builtin_sqrt(ws.add_sums(0) / ws.add_sums(1));
}

// The length of what the fresh vector has of its own is known beforehand: V' is orthonormal.
template <typename T>
static void look_fresh(const LookWorkspace<T>& ws) {
  ws.add_parts(ws.padded);
  double square = ws.add_sums(2);
  for (int64_t j = 0; j + 1 < ws.s; ++j) square -= ws.total[j] * ws.total[j];
  const double inverse = 1 / __builtin_sqrt(square);
  ws.h_fresh[ws.padded - 1] = 0;
  for (int64_t j = 0; j + 1 < ws.s; ++j) ws.h_fresh[j] = ws.total[j] * inverse;
  ws.h_fresh[ws.s - 1] = inverse;
}

template <typename T>
static void look_write(const LookInput<T>& in, const LookWorkspace<T>& ws, int64_t piece, T* vectors) {
  const int64_t first = ws.first_row(piece), last = first + ws.rows(piece), s = ws.s;
  const double own = ws.h_fresh[s - 1];
  for (int64_t i = first; i < last; ++i) {
    const T* const from = ws.next + i * ws.padded;
    T* const to = vectors + i * s;
    double fresh = own * in.fresh[i];
    for (int64_t j = 0; j + 1 < s; ++j) {
      to[j] = from[j];
      fresh -= ws.h_fresh[j] * from[j];
    }
    to[s - 1] = static_cast<T>(fresh);
  }
}

template <typename T>
static void look_piece(const LookShape& shape, const LookInput<T>& in, LookStep step, LookStatus status, int64_t piece,
                       void* block, T* vectors) {
  const LookWorkspace<T> ws = LookWorkspace<T>::of(shape, block, nullptr);
  switch (step) {
    case LookStep::gather: return look_gather(shape, in, ws, piece);
    case LookStep::project: return look_project(ws, piece);
    case LookStep::inner: return look_inner(shape, in, ws, true, piece);
    case LookStep::inner_again: return look_inner(shape, in, ws, false, piece);
    case LookStep::turn: return look_turn(shape, in, ws, true, status, piece);
    case LookStep::turn_again: return look_turn(shape, in, ws, false, status, piece);
    case LookStep::write: return look_write(in, ws, piece, vectors);
  }
}

template <typename T>
static LookStatus look_small(const LookShape& shape, LookStep step, void* block, LookResult* result) {
  const LookWorkspace<T> ws = LookWorkspace<T>::of(shape, block, nullptr);
  switch (step) {
    case LookStep::gather: look_overlap(shape, ws); break;
    case LookStep::inner: return look_ritz(shape, ws, true, result);
    case LookStep::inner_again: return look_ritz(shape, ws, false, result);
    case LookStep::turn: look_drift(ws, result); break;
    case LookStep::write: look_fresh(ws); break;
    default: break;
  }
  return LookStatus::good;
}
