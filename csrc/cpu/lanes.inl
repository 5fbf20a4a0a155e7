// Matrices side by side: entry (i, j) of `lanes` matrices is one register, and the registers are stored row by row.
//
// Reading is a transposition: `lanes` consecutive entries of each of `lanes` matrices become `lanes` registers in log2(lanes)
// rounds of perfect shuffles. The largest magnitude of a matrix, its finiteness and its scaling (load.inl) are then lane
// arithmetic.

typedef Simd<double> Lane;
typedef Lane::Vector Reals;
typedef PairOf<Reals> Pairs;
typedef int64_t Masks __attribute__((vector_size(SF_VECTOR_BYTES)));  // of comparisons: -1 is true

static constexpr int64_t lanes = Lane::lanes;
static constexpr int64_t packs = 2;  // registers that go through a chain of divisions side by side
static constexpr int64_t all_lanes = packs * lanes;

static inline void store_masks(int64_t* p, Masks m) { *reinterpret_cast<Masks*>(p) = m; }

static inline Reals larger(Reals x, Reals y) { return x > y ? x : y; }

// x_l[c] -> x_c[l]
static inline void transpose(Reals* x) {
#if SF_VECTOR_BYTES == 64
#define SF_LOW 0, 8, 1, 9, 2, 10, 3, 11
#define SF_HIGH 4, 12, 5, 13, 6, 14, 7, 15
#elif SF_VECTOR_BYTES == 32
#define SF_LOW 0, 4, 1, 5
#define SF_HIGH 2, 6, 3, 7
#else
#define SF_LOW 0, 2
#define SF_HIGH 1, 3
#endif
  for (int64_t round = 1; round < lanes; round *= 2) {
    Reals y[lanes];
    for (int64_t l = 0; l < lanes / 2; ++l) {
      y[2 * l] = __builtin_shufflevector(x[l], x[l + lanes / 2], SF_LOW);
      y[2 * l + 1] = __builtin_shufflevector(x[l], x[l + lanes / 2], SF_HIGH);
    }
    for (int64_t l = 0; l < lanes; ++l) x[l] = y[l];
  }
#undef SF_LOW
#undef SF_HIGH
}

// Entries p[0] .. p[count * stride] in double, zeros behind them.
template <typename Element>
static inline Reals load_converted(const typename Element::Bits* p, int64_t count, int64_t stride) {
  if constexpr (sizeof(typename Element::Bits) >= sizeof(float)) {
    if (count == lanes && stride == 1) {
      typedef decltype(Element::value(0)) Value;
      typedef Value Values __attribute__((vector_size(sizeof(Value) * SF_VECTOR_BYTES / sizeof(double))));
      Values x;
      __builtin_memcpy(&x, p, sizeof x);
      return __builtin_convertvector(x, Reals);
    }
  }
  Reals x{};
  for (int64_t c = 0; c < count; ++c) x[c] = Element::value(p[c * stride]);
  return x;
}

// Scaling costs a pass, and double has room: |A|_F^2 < grouped_entries 2^(2 * 51) = 2^115 leaves the quotients of dqds_lanes.inl
// finite, whose pivots may be as small as 2^-900.
static constexpr int comfortable_exponent = 50;
static_assert(grouped_entries <= 1 << 13, "the bound above");

// What became of the matrices of a pack.
struct LaneScales {
  int exponent[lanes];  // the matrix was multiplied by 2^exponent
  bool finite[lanes];
};

// `count` <= lanes matrices of one shape and one element type into work (m x ld registers); zeros in the other lanes, and in
// place of matrices that are not finite.
template <typename Element>
static LaneScales load_lanes(const TallView* a, int64_t count, double* work, int64_t ld) {
  typedef typename Element::Bits Bits;
  const int64_t m = a[0].m, n = a[0].n;
  bool same_strides = true;
  for (int64_t l = 1; l < count; ++l) same_strides &= a[l].row_stride == a[0].row_stride && a[l].col_stride == a[0].col_stride;
  const bool by_rows = !same_strides || a[0].row_stride >= a[0].col_stride;
  // A matrix without gaps is one long row, as long as the rows of `work` have none.
  const bool dense = same_strides && a[0].col_stride == 1 && a[0].row_stride == n && ld == n;
  const int64_t outer = dense ? 1 : by_rows ? m : n, inner = dense ? m * n : by_rows ? n : m;
  const int64_t outer_step = by_rows ? ld : 1, inner_step = by_rows ? 1 : ld;

  Masks largest{};
  for (int64_t i = 0; i < outer; ++i) {
    for (int64_t j = 0; j < inner; j += lanes) {
      const int64_t width = inner - j < lanes ? inner - j : lanes;
      Reals x[lanes];
      for (int64_t l = 0; l < lanes; ++l) {
        if (l >= count) {
          x[l] = Reals{};
          continue;
        }
        const int64_t outer_stride = by_rows ? a[l].row_stride : a[l].col_stride;
        const int64_t inner_stride = by_rows ? a[l].col_stride : a[l].row_stride;
        const Bits* const p = static_cast<const Bits*>(a[l].data) + i * outer_stride + j * inner_stride;
        x[l] = load_converted<Element>(p, width, inner_stride);
      }
      transpose(x);
      for (int64_t c = 0; c < width; ++c) {
        const Masks bits = reinterpret_cast<Masks>(x[c]) & static_cast<int64_t>(Float64::magnitude);
        largest = bits > largest ? bits : largest;
        Lane::store(work + (i * outer_step + (j + c) * inner_step) * lanes, x[c]);
      }
    }
  }

  LaneScales scales;
  alignas(workspace_alignment) double first[lanes], second[lanes];
  bool all_finite = true, scaled = false;
  for (int64_t l = 0; l < lanes; ++l) {
    const uint64_t bits = static_cast<uint64_t>(largest[l]);
    scales.finite[l] = bits < Float64::infinity;
    const int wanted = scale_exponent(scales.finite[l] ? Float64::value(bits) : 0);
    const Scale<double> scale = Scale<double>::of(__builtin_abs(wanted) > comfortable_exponent ? wanted : 0);
    scales.exponent[l] = scale.exponent;
    first[l] = scale.first, second[l] = scale.second;
    all_finite &= scales.finite[l];
    scaled |= scale.exponent != 0;
  }
  if (all_finite && !scaled) return scales;
  Masks keep;
  for (int64_t l = 0; l < lanes; ++l) keep[l] = scales.finite[l] ? -1 : 0;
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < n; ++j) {
      double* const p = work + (i * ld + j) * lanes;
      const Reals x = Lane::load(p) * Lane::load(first) * Lane::load(second);
      Lane::store(p, keep ? x : Reals{});
    }
  return scales;
}
