// The reflectors of `band` and `bidiagonal`, for the way back from the vectors of the bidiagonal (vectors.inl).

template <int b>
struct ChaseReflector;  // bidiagonal.inl

// One side. Rows of v and u belong to rows of the strip; block k starts at row
// (k + shift) b and has b rows of zeros before.
template <typename T>
struct KeptSide {
  T *v, *u;        // rows x b for each block
  T *chase, *tau;  // b and 1 for each step of the chase
  int64_t rows, shift;

  inline int64_t first_row(int64_t block) const { return (block + shift) * Blocks<T>::block; }
  inline T* block_of(T* all, int64_t block) const { return all + block * rows * Blocks<T>::block; }

  // The reflectors of a block: `count` rows of v and u.
  void keep_block(int64_t block, const T* v_rows, const T* u_rows, int64_t count) const {
    constexpr int b = Blocks<T>::block;
    const int64_t first = first_row(block) * b, before = first > 0 ? first - b * b : 0;
    T *const to_v = block_of(v, block), *const to_u = block_of(u, block);
    for (int64_t i = before; i < first; ++i) to_v[i] = to_u[i] = 0;
    for (int64_t i = 0; i < count * b; ++i) {
      to_v[first + i] = v_rows[i];
      to_u[first + i] = u_rows[i];
    }
  }
};

template <typename T>
struct Kept {
  KeptSide<T> left, right;
  int64_t n;

  // Where step p of sweep i lies: the later sweeps, which are shorter, come first. Of a sweep with `rest` columns to go, rest / b
  // + 1.
  static inline int64_t steps_of(int64_t sweeps) {
    constexpr int b = Blocks<T>::block;
    const int64_t whole = sweeps / b;
    return sweeps + b * whole * (whole - 1) / 2 + whole * (sweeps - whole * b);
  }
  inline int64_t place(int64_t i, int64_t p) const { return steps_of(n - 2 - i) + p; }

  template <int b>
  void keep_step(int64_t i, int64_t p, const ChaseReflector<b>& of_left, const ChaseReflector<b>& of_right) const {
    keep_reflector(left, place(i, p), of_left);
    keep_reflector(right, place(i, p), of_right);
  }

  template <int b>
  static void keep_reflector(const KeptSide<T>& side, int64_t at, const ChaseReflector<b>& h) {
    double squared = 0;
    for (int j = 0; j < b; ++j) {
      const T x = static_cast<T>(h.v[j / SimdD::lanes][j % SimdD::lanes]);
      side.chase[at * b + j] = x;
      squared += static_cast<double>(x) * x;
    }
    side.tau[at] = static_cast<T>(h.excess == -1 ? 0 : 2 / squared);  // of the rounded vector, so that H is orthogonal
  }
};
