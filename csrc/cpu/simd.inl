// A register full of scalars, and nothing else: the compiler's own vector type, so that the same source serves every
// instruction set. SF_VECTOR_BYTES comes from the translation unit that includes the kernels.

template <typename T>
struct Simd {
  static constexpr int64_t lanes = SF_VECTOR_BYTES / sizeof(T);
  typedef T Vector __attribute__((vector_size(SF_VECTOR_BYTES)));

  static inline Vector load(const T* p) { return *reinterpret_cast<const Vector*>(p); }
  static inline void store(T* p, Vector v) { *reinterpret_cast<Vector*>(p) = v; }
  static inline Vector broadcast(T x) { return x - Vector{}; }

  // In double, and always in the same order.
  static inline double sum(Vector v) {
    double total = 0;
    for (int64_t l = 0; l < lanes; ++l) total += v[l];
    return total;
  }
};

static inline int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }
static inline int64_t round_down(int64_t n, int64_t unit) { return n / unit * unit; }

// Rows of a working matrix start on a register boundary. A row length that is a multiple of the page size would map a
// whole column to one cache set, so such rows get one register more.
template <typename T>
static inline int64_t leading_dimension(int64_t cols) {
  const int64_t ld = round_up(cols, Simd<T>::lanes);
  return ld * sizeof(T) % 4096 == 0 ? ld + Simd<T>::lanes : ld;
}
