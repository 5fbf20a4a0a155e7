// The tiles of the Gram product (products.inl): a block of A times vectors, and its transpose times vectors.
//
// A block is stored in strips of its inner direction, the one in which A is contiguous: element (o, i) of strip i / strip at
// [o * strip + i % strip]. There are two products with it, whichever way A lies:
//
//   across   c_o += sum_i block(o, i) b_i       along the strips
//   down     c_i += sum_o block(o, i) b_o       across them
//
// Where b has as many columns as registers have lanes (WideTiles), a register holds columns of b, and an entry of the block is
// broadcast: a tile of `height` entries by `vectors` registers of c takes height + vectors loads for height * vectors
// multiply-adds, 25 for 24 at worst, and two of each are possible a cycle. b and c are arrays of rows, `width` long.
//
// Where it has fewer (ThinTiles), a register holds entries of the block, and the columns of b go one by one: a load for
// `columns` multiply-adds. What belongs to the outer direction is an array of rows, `columns` long; what belongs to the inner
// one an array of strips, `columns` rows of them each.
//
// Both take sums of a strip or of `chain` terms in registers, and add those up.

template <typename T>
struct ProductBlocks {
  static constexpr int lanes = Simd<T>::lanes;
  static constexpr int registers = SF_VECTOR_BYTES == 64 ? 24 : 12;  // of sums
  static constexpr int unit = 2 * registers;                         // a multiple of the height of every WideTiles
  static constexpr int strip = 3 * lanes > 24 ? 3 * lanes : 24;
  static constexpr int most_vectors = SF_VECTOR_BYTES == 64 ? 4 : 3;
  static constexpr int64_t chain = 96;
};

// A copy, or for ThinTiles A itself, where that is contiguous: element (o, i) of strip s at [s * strip_stride + o * row_stride
// + i]. Entries beyond `inner` are zero up to the end of the strip; `outer` is followed by zeros up to a multiple of a tile's
// height.
template <typename T>
struct ProductBlock {
  const T* data;
  int64_t outer, inner;
  int64_t strip_stride, row_stride;

  static constexpr int strip = ProductBlocks<T>::strip;
  inline int64_t strips() const { return (inner + strip - 1) / strip; }
  inline const T* at(int64_t s, int64_t o) const { return data + s * strip_stride + o * row_stride; }
  inline int64_t length(int64_t s) const { return inner - s * strip < strip ? inner - s * strip : strip; }
};

// The next block, which the tiles of this one fetch on the side: `runs` runs of `lines` cache lines.
struct ProductAhead {
  const char* data;
  int64_t lines, line_stride, runs, run_stride;  // strides in bytes
  int64_t line, run;                             // where to go on

  // The next `count` lines or more are [0], [line_stride], ... from here; where none are left, one that is there.
  inline const char* take(int64_t count, int64_t* stride) {
    if (run == runs) {
      *stride = 0;
      return data;
    }
    const char* const p = data + run * run_stride + line * line_stride;
    *stride = line_stride;
    line += count;
    if (line >= lines) line = 0, ++run;
    return p;
  }
};

template <typename T, int vectors>
struct WideTiles {
  typedef Simd<T> S;
  typedef typename S::Vector V;
  static constexpr bool wide = true;
  static constexpr int width = vectors * S::lanes;
  static constexpr int height = ProductBlocks<T>::registers / vectors;
  static constexpr int strip = ProductBlocks<T>::strip;
  static_assert(strip % height == 0 && ProductBlocks<T>::unit % height == 0, "tiles end where strips end");

  // c (height x width) += a b, b (depth x width). a(r, k) lies at [r * row + k * column].
  template <int row, int column>
  static inline __attribute__((always_inline)) void tile(T* c, const T* a, const T* b, int64_t depth, ProductAhead& ahead) {
    V sum[height][vectors] = {};
    for (int i = 0; i < height * width; i += 64 / static_cast<int>(sizeof(T))) __builtin_prefetch(c + i, 1);
    int64_t stride;
    const char* next = ahead.take(depth, &stride);
    for (int64_t k = 0; k < depth; ++k, next += stride) {
      __builtin_prefetch(next, 0, 2);
      V of_b[vectors];
      SF_UNROLL
      for (int v = 0; v < vectors; ++v) of_b[v] = S::load(b + k * width + v * S::lanes);
      SF_UNROLL
      for (int r = 0; r < height; ++r) {
        SF_UNROLL
        for (int v = 0; v < vectors; ++v) sum[r][v] += a[r * row + k * column] * of_b[v];
      }
    }
    SF_UNROLL
    for (int r = 0; r < height; ++r) {
      SF_UNROLL
      for (int v = 0; v < vectors; ++v) {
        T* const to = c + r * width + v * S::lanes;
        S::store(to, S::load(to) + sum[r][v]);
      }
    }
  }

  static void across(const ProductBlock<T>& block, const T* b, T* c, ProductAhead& ahead) {
    for (int64_t s = 0; s < block.strips(); ++s)
      for (int64_t o = 0; o < block.outer; o += height)
        tile<strip, 1>(c + o * width, block.at(s, o), b + s * strip * width, block.length(s), ahead);
  }

  static void down(const ProductBlock<T>& block, const T* b, T* c, ProductAhead& ahead) {
    for (int64_t o = 0; o < block.outer; o += ProductBlocks<T>::chain) {
      const int64_t depth = block.outer - o < ProductBlocks<T>::chain ? block.outer - o : ProductBlocks<T>::chain;
      for (int64_t s = 0; s < block.strips(); ++s)
        for (int64_t i = 0; i < block.length(s); i += height)
          tile<1, strip>(c + (s * strip + i) * width, block.at(s, o) + i, b + o * width, depth, ahead);
    }
  }
};

template <typename T, int columns>
struct ThinTiles {
  typedef Simd<T> S;
  typedef typename S::Vector V;
  static constexpr bool wide = false;
  static constexpr int width = columns;
  static constexpr int strip = ProductBlocks<T>::strip;
  static constexpr int sums = SF_VECTOR_BYTES == 64 ? 16 : 8;  // chains in flight
  static constexpr int height = sums / columns;                // entries of c that are summed at a time by `across`
  static constexpr int group = 3;                              // registers of c that are summed at a time by `down`
  static constexpr int steps = columns < 4 ? 4 / columns : 1;  // `down` sums every steps-th row apart: chains enough
  static_assert(strip % (group * S::lanes) == 0 && 16 % height == 0 && sums % S::lanes == 0, "tiles end where strips end");

  static void across(const ProductBlock<T>& block, const T* b, T* c) {
    for (int64_t o = 0; o < block.outer; o += height) {
      V sum[sums] = {};
      for (int64_t s = 0; s < block.strips(); ++s) {
        const T* const a = block.at(s, o);
        const T* const of_b = b + s * strip * columns;
        for (int i = 0; i < strip; i += S::lanes) {
          V x[columns];
          SF_UNROLL
          for (int k = 0; k < columns; ++k) x[k] = S::load(of_b + k * strip + i);
          SF_UNROLL
          for (int r = 0; r < height; ++r) {
            const T* const from = a + r * block.row_stride + i;
            const V entries = S::load_unaligned(from);
            SF_UNROLL
            for (int k = 0; k < columns; ++k) sum[r * columns + k] += entries * x[k];
          }
        }
      }
      // The sum over the lanes of register r * columns + k belongs there in c.
      SF_UNROLL
      for (int first = 0; first < sums; first += S::lanes) {
        T* const to = c + o * columns + first;
        const V total = S::row_sums([&](int i) __attribute__((always_inline)) { return sum[first + i]; });
        S::store_unaligned(to, S::load_unaligned(to) + total);
      }
    }
  }

  static void down(const ProductBlock<T>& block, const T* b, T* c) {
    for (int64_t o = 0; o < block.outer; o += ProductBlocks<T>::chain) {
      const int64_t depth = block.outer - o < ProductBlocks<T>::chain ? block.outer - o : ProductBlocks<T>::chain;
      for (int64_t s = 0; s < block.strips(); ++s)
        for (int i = 0; i < strip; i += group * S::lanes)
          down_group(block.at(s, o) + i, block.row_stride, b + o * columns, depth, c + s * strip * columns + i);
    }
  }

  // group registers of a strip, `depth` rows of it.
  static inline __attribute__((always_inline)) void down_group(const T* a, int64_t row_stride, const T* b, int64_t depth, T* c) {
    V sum[steps][columns][group] = {};
    int64_t k = 0;
    const auto add = [&](int step) __attribute__((always_inline)) {
      SF_UNROLL
      for (int v = 0; v < group; ++v) {
        const V entries = S::load_unaligned(a + (k + step) * row_stride + v * S::lanes);
        SF_UNROLL
        for (int l = 0; l < columns; ++l) sum[step][l][v] += b[(k + step) * columns + l] * entries;
      }
    };
    for (; k + steps <= depth; k += steps) {
      SF_UNROLL
      for (int step = 0; step < steps; ++step) add(step);
    }
    for (; k < depth; ++k) add(0);
    SF_UNROLL
    for (int l = 0; l < columns; ++l) {
      SF_UNROLL
      for (int v = 0; v < group; ++v) {
        T* const to = c + l * strip + v * S::lanes;
        V total = S::load(to);
        SF_UNROLL
        for (int step = 0; step < steps; ++step) total += sum[step][l][v];
        S::store(to, total);
      }
    }
  }
};
