// Reading a matrix: finiteness, scale, conversion.
//
// Scaling by a power of two is exact, so every matrix is brought to largest entry in [1, 2) and its values are scaled back
// (LAPACK xGESDD does so outside its safe range). The products of the updates stay away from overflow, and what underflows is
// below 2^-100 of the largest entry.
//
// The largest magnitude and "is anything not finite" are one question: the bit patterns of |x| order like |x|, with
// infinity and NaN on top.

struct Float32 {
  typedef uint32_t Bits;
  static constexpr Bits magnitude = 0x7fffffffu, infinity = 0x7f800000u;
  static inline float value(Bits b) {
    float x;
    __builtin_memcpy(&x, &b, sizeof x);
    return x;
  }
};

struct Float64 {
  typedef uint64_t Bits;
  static constexpr Bits magnitude = 0x7fffffffffffffffull, infinity = 0x7ff0000000000000ull;
  static inline double value(Bits b) {
    double x;
    __builtin_memcpy(&x, &b, sizeof x);
    return x;
  }
};

struct BFloat16 {
  typedef uint16_t Bits;
  static constexpr Bits magnitude = 0x7fff, infinity = 0x7f80;
  static inline float value(Bits b) { return Float32::value(static_cast<uint32_t>(b) << 16); }
};

struct Float16 {
  typedef uint16_t Bits;
  static constexpr Bits magnitude = 0x7fff, infinity = 0x7c00;
  // Move exponent and mantissa into float32's places; multiplying by 2^112 mends the bias, for subnormals too.
  static inline float value(Bits b) {
    const uint32_t bits = static_cast<uint32_t>(b & magnitude) << 13;
    const float x = (b & magnitude) < infinity ? Float32::value(bits) * 0x1p112f : Float32::value(bits | Float32::infinity);
    return b & 0x8000 ? -x : x;
  }
};

// m x n with m >= n: a wide matrix is read through its transpose.
struct TallView {
  const void* data;
  int64_t m, n, row_stride, col_stride;
};

static inline TallView tall_view(const MatrixView& a) {
  if (a.rows >= a.cols) return {a.data, a.rows, a.cols, a.row_stride, a.col_stride};
  return {a.data, a.cols, a.rows, a.col_stride, a.row_stride};
}

template <typename Element>
static typename Element::Bits largest_magnitude(const TallView& a) {
  typedef typename Element::Bits Bits;
  const Bits* data = static_cast<const Bits*>(a.data);
  const bool by_rows = a.row_stride >= a.col_stride;
  int64_t outer = by_rows ? a.m : a.n, inner = by_rows ? a.n : a.m;
  const int64_t outer_stride = by_rows ? a.row_stride : a.col_stride;
  const int64_t inner_stride = by_rows ? a.col_stride : a.row_stride;
  if (inner_stride == 1 && outer_stride == inner) {  // without gaps: one long row
    inner *= outer;
    outer = 1;
  }
  Bits largest = 0;
  for (int64_t i = 0; i < outer; ++i) {
    const Bits* p = data + i * outer_stride;
    if (inner_stride == 1) {
      for (int64_t j = 0; j < inner; ++j) {
        const Bits b = p[j] & Element::magnitude;
        largest = largest < b ? b : largest;
      }
    } else {
      for (int64_t j = 0; j < inner; ++j) {
        const Bits b = p[j * inner_stride] & Element::magnitude;
        largest = largest < b ? b : largest;
      }
    }
  }
  return largest;
}

// x * 2^exponent, in two factors since one alone may not be representable.
template <typename T>
struct Scale {
  int exponent;
  T first, second;

  static inline Scale of(int exponent) {
    return {exponent, static_cast<T>(__builtin_ldexp(1.0, exponent / 2)),
            static_cast<T>(__builtin_ldexp(1.0, exponent - exponent / 2))};
  }
  inline T operator()(T x) const { return x * first * second; }
};

// Of the power of two that brings `largest` to [1, 2).
static inline int scale_exponent(double largest) { return largest > 0 ? -__builtin_ilogb(largest) : 0; }

// Rows first .. first + count of `a` into `work` (row-major, ld), with zeros from column n to padded_n.
template <typename T, typename Element>
static void load_rows(const TallView& a, int64_t first, int64_t count, int64_t padded_n, const Scale<T>& scale, T* work,
                      int64_t ld) {
  typedef typename Element::Bits Bits;
  // A transposed source is contiguous along i: tiles keep its cache lines in use.
  constexpr int64_t tile = 16;
  const Bits* data = static_cast<const Bits*>(a.data) + first * a.row_stride;
  for (int64_t i0 = 0; i0 < count; i0 += tile) {
    const int64_t i1 = i0 + tile < count ? i0 + tile : count;
    if (a.col_stride == 1) {
      for (int64_t i = i0; i < i1; ++i) {
        const Bits* p = data + i * a.row_stride;
        T* row = work + i * ld;
        for (int64_t j = 0; j < a.n; ++j) row[j] = scale(static_cast<T>(Element::value(p[j])));
      }
    } else {
      for (int64_t j0 = 0; j0 < a.n; j0 += tile) {
        const int64_t j1 = j0 + tile < a.n ? j0 + tile : a.n;
        for (int64_t i = i0; i < i1; ++i)
          for (int64_t j = j0; j < j1; ++j)
            work[i * ld + j] = scale(static_cast<T>(Element::value(data[i * a.row_stride + j * a.col_stride])));
      }
    }
    for (int64_t i = i0; i < i1; ++i)
      for (int64_t j = a.n; j < padded_n; ++j) work[i * ld + j] = 0;
  }
}

// As load_rows, into strips, with zeros from column n to padded_n.
template <typename T, typename Element>
static void load_strips(const TallView& a, int64_t first, int64_t count, int64_t padded_n, const Scale<T>& scale,
                        const Strips<T>& work, const Team& team) {
  constexpr int64_t width = Blocks<T>::strip_columns, piece_rows = 64;
  parallel_for(team, (count + piece_rows - 1) / piece_rows, [&](int64_t piece) {
    const int64_t i = piece * piece_rows, rows = i + piece_rows < count ? piece_rows : count - i;
    for (int64_t j = 0; j < padded_n; j += width) {
      const int64_t cols = j >= a.n ? 0 : j + width < a.n ? width : a.n - j;
      const typename Element::Bits* const corner = static_cast<const typename Element::Bits*>(a.data) + j * a.col_stride;
      const TallView part{corner, a.m, cols, a.row_stride, a.col_stride};
      load_rows<T, Element>(part, first + i, rows, padded_n - j < width ? padded_n - j : width, scale, work.at(i, j), width);
    }
  });
}

// Rows `first` and on are zeroed.
template <typename T>
static void zero_rows(const Strips<T>& work, int64_t first, int64_t cols) {
  constexpr int64_t width = Blocks<T>::strip_columns;
  for (int64_t j = 0; j < cols; j += width)
    for (T* p = work.at(first, j); p < work.at(first, j) + (work.rows - first) * width; ++p) *p = 0;
}
