// A register full of scalars, and nothing else: the compiler's own vector type, so that the same source serves every
// instruction set. SF_VECTOR_BYTES comes from the translation unit that includes the kernels.

#if defined(__clang__)
#define SF_UNROLL _Pragma("unroll")
#else
#define SF_UNROLL _Pragma("GCC unroll 32")
#endif

template <int... index>
struct Indices {};
template <int n, int... index>
struct MakeIndices : MakeIndices<n - 1, n - 1, index...> {};
template <int... index>
struct MakeIndices<0, index...> {
  typedef Indices<index...> type;
};

template <typename T>
struct Simd {
  static constexpr int lanes = SF_VECTOR_BYTES / sizeof(T);
  typedef T Vector __attribute__((vector_size(SF_VECTOR_BYTES)));
  typedef T Unaligned __attribute__((vector_size(SF_VECTOR_BYTES), aligned(sizeof(T)), may_alias));

  static inline Vector load(const T* p) { return *reinterpret_cast<const Vector*>(p); }
  static inline void store(T* p, Vector v) { *reinterpret_cast<Vector*>(p) = v; }
  static inline Vector load_unaligned(const T* p) { return *reinterpret_cast<const Unaligned*>(p); }
  static inline void store_unaligned(T* p, Vector v) { *reinterpret_cast<Unaligned*>(p) = v; }
  static inline Vector broadcast(T x) { return x - Vector{}; }

  // In double, and always in the same order.
  static inline double sum(Vector v) {
    double total = 0;
    for (int l = 0; l < lanes; ++l) total += v[l];
    return total;
  }

  // Lane l of the result: from `a` where bit h of l is clear, from `b` where it is set; lane l itself, or its partner l ^ h.
  template <int h, int... l>
  static inline Vector own(Vector a, Vector b, Indices<l...>) {
    return __builtin_shufflevector(a, b, ((l & h) ? lanes + l : l)...);
  }
  template <int h, int... l>
  static inline Vector partner(Vector a, Vector b, Indices<l...>) {
    return __builtin_shufflevector(a, b, ((l & h) ? lanes + (l ^ h) : l ^ h)...);
  }
  template <int h, int... l>
  static inline Vector low(Vector a, Vector b, Indices<l...>) {
    return __builtin_shufflevector(a, b, ((l & h) ? lanes + (l ^ h) : l)...);
  }
  template <int h, int... l>
  static inline Vector high(Vector a, Vector b, Indices<l...>) {
    return __builtin_shufflevector(a, b, ((l & h) ? lanes + l : l ^ h)...);
  }
  typedef typename MakeIndices<lanes>::type All;

  // x[i][l] <-> x[l][i]: bit by bit, the rows i and i | h exchange what differs in bit h.
  template <int h = lanes / 2>
  static inline void transpose(Vector* x) {
    if constexpr (h > 0) {
      SF_UNROLL
      for (int i = 0; i < lanes; ++i) {
        if (i & h) continue;
        const Vector a = x[i], b = x[i | h];
        x[i] = low<h>(a, b, All());
        x[i | h] = high<h>(a, b, All());
      }
      transpose<h / 2>(x);
    }
  }

  // v with lane 0 of `first`. (v[0] = x would go through memory, and the load that follows would wait for the store to retire.)
  template <int... l>
  static inline Vector with_first_of(Vector v, Vector first, Indices<l...>) {
    return __builtin_shufflevector(v, first, (l == 0 ? lanes : l)...);
  }
  static inline Vector with_first(Vector v, T first) { return with_first_of(v, broadcast(first), All()); }

  // Half the lanes, the first or the second, in double.
  typedef double Wide __attribute__((vector_size(SF_VECTOR_BYTES)));
  template <int half, int... l>
  static inline Wide widen_of(Vector v, Indices<l...>) {
    return __builtin_convertvector(__builtin_shufflevector(v, v, (half * lanes / 2 + l)...), Wide);
  }
  template <int half>
  static inline Wide widen(Vector v) {
    return widen_of<half>(v, typename MakeIndices<lanes / 2>::type());
  }

  // Pairwise, which is the shorter chain.
  template <int h = lanes / 2>
  static inline T tree_sum(Vector v) {
    if constexpr (h == 0)
      return v[0];
    else
      return tree_sum<h / 2>(v + partner<h>(v, v, All()));
  }

  // Lane i of the result: the sum over the lanes of x(i).
  template <int h = 1, int i = 0, typename Row>
  static inline __attribute__((always_inline)) Vector row_sums(const Row& x) {
    if constexpr (h == lanes) {
      return x(i);
    } else {
      const Vector a = row_sums<2 * h, i>(x), b = row_sums<2 * h, i + h>(x);
      return own<h>(a, b, All()) + partner<h>(a, b, All());
    }
  }

  // Lane i of the result: lane 0 of x(i).
  template <int h = 1, int i = 0, typename Row>
  static inline __attribute__((always_inline)) Vector first_column(const Row& x) {
    if constexpr (h == lanes) {
      return x(i);
    } else {
      return low<h>(first_column<2 * h, i>(x), first_column<2 * h, i + h>(x), All());
    }
  }
};

typedef Simd<double> SimdD;
typedef SimdD::Vector VectorD;

static inline int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }
static inline int64_t round_down(int64_t n, int64_t unit) { return n / unit * unit; }

// Rows of a working matrix start on a register boundary. A row length that is a multiple of the page size would map a
// whole column to one cache set, so such rows get one register more.
template <typename T>
static inline int64_t leading_dimension(int64_t cols) {
  const int64_t ld = round_up(cols, Simd<T>::lanes);
  return ld * sizeof(T) % 4096 == 0 ? ld + Simd<T>::lanes : ld;
}
