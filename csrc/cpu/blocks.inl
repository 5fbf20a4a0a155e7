// The shapes that the blocked stages share.
//
//   block    b, the number of reflectors applied together and the width of the band: one AVX-512 register of float32, eight
//            otherwise. A wider one brings the products nearer to the peak, and `bidiagonal` costs 8 n^2 b.
//   strip    a working matrix is cut into strips of strip_columns columns. The rows of a strip lie next to each other, so every
//            kernel reads memory in order, and a tile of tile_rows rows fills the registers.
//
// Element (i, j) of a matrix with `rows` rows: strip j / strip_columns, at [i * strip_columns + j % strip_columns].

template <typename T>
struct Blocks {
  static constexpr int lanes = Simd<T>::lanes;
  static constexpr int block = lanes > 8 ? lanes : 8;
  static constexpr int vectors = block / lanes;  // registers in a row of a panel
  static constexpr int strip_vectors = 3;
  static constexpr int strip_columns = strip_vectors * lanes;
  static constexpr int tile_rows = SF_VECTOR_BYTES == 64 ? 8 : 4;  // 8 x 3 of 32 registers, 4 x 3 of 16
};

template <typename T>
struct Strips {
  T* data;
  int64_t rows;  // allocated

  static inline int64_t count(int64_t cols) { return (cols + Blocks<T>::strip_columns - 1) / Blocks<T>::strip_columns; }
  static inline int64_t size(int64_t rows, int64_t cols) { return count(cols) * rows * Blocks<T>::strip_columns; }
  inline T* strip(int64_t s) const { return data + s * rows * Blocks<T>::strip_columns; }
  inline T* at(int64_t i, int64_t j) const {
    return strip(j / Blocks<T>::strip_columns) + i * Blocks<T>::strip_columns + j % Blocks<T>::strip_columns;
  }
};
