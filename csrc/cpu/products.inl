// The Gram product of a few vectors:  Z = A^T (A X),  and the energy |A|_F^2, from one read of A.
//
// A is m x n, X and Z are n x s. Y = A X is made a block of rows at a time, and the block's part of Z = A^T Y is added while the
// block is still in cache; Y is never there as a whole:
//
//   for each block of rows:   P <- A_block, energy += |P|_F^2;   Y <- P X;   Z += P^T Y
//
// P is a copy in strips of the direction in which A is contiguous (products_tiles.inl): rows and columns cost the same, rows of
// a power of two do not collide in a cache set, halves are widened once. For s <= 8 (half a register) and A by rows, P is A
// itself.
//
// cost       4 m n s flops, s rounded up to registers, below half of one to 1, 2, 4, 8. Bytes: A from memory, once; its copy
//            from the second level cache, twice for every four registers of X. Bound: the register rate from s = 16 on, below it
//            the caches.
// error      a sum of n terms and one of m terms in T, each in parts of a strip to a block. Squares are summed in T eight at a
//            time and in double beyond.
// threads    rows are cut into pieces by the shape alone; each has its own partial Z, and these are added in order.
//
// ladder     768 x 768 float32, s = 1 and 16, one thread (AVX-512; docs/performance.md):
//              torch's A.mT @ (A @ X), which has no energy            65 us, 560 us
//              copied in strips, 96 rows at a time                   106 us, 251 us
//              the next block fetched by the tiles of this one       102 us, 239 us   2048 x 2048: 3.9 -> 2.3 ms
//              s <= 8: 16 rows at a time, in place                    85 us
//              without fetching ahead there                           65 us
//              (A by columns, s = 1: 90 us. Runs of columns that go into Y before they leave the first level cache: 98 us.)

// A copy of 96 x 1024 float32 is 384 KiB; with the next block on its way it fills 3/4 of the second level cache. 2048 x 2048, s =
// 16: 96 rows 2.15 ms, 48 rows 1.98; by columns, where 48 rows are three cache lines, 2.28 and 2.56.
static constexpr int64_t product_block_rows = 96, product_fewer_rows = 48, product_block_bytes = 512 << 10;
// In place, read twice from the first level cache where they fit. A multiple of ThinTiles' heights.
static constexpr int64_t product_thin_rows = 16;
static constexpr int64_t product_piece_rows = 192, product_most_pieces = 16;

template <typename T>
struct ProductPlan {
  typedef ProductBlocks<T> Blocks;
  int64_t rows, cols, columns;  // m, n, s
  int64_t row_stride, col_stride;
  bool by_rows;     // strips go along the rows of A
  int thin;         // columns of ThinTiles, or 0 for WideTiles
  int64_t vectors;  // registers in a row of X, wide
  int64_t block_rows, piece_rows, pieces;

  static inline ProductPlan of(const MatrixView& a, int64_t columns) {
    ProductPlan p{};
    p.rows = a.rows, p.cols = a.cols, p.columns = columns;
    p.row_stride = a.row_stride, p.col_stride = a.col_stride;
    p.by_rows = a.col_stride == 1 || (a.row_stride != 1 && a.row_stride >= a.col_stride);
    for (int thin = 1; thin <= Blocks::lanes / 2 && p.thin < columns; thin *= 2) p.thin = thin;
    if (p.thin < columns) p.thin = 0;
    p.vectors = (columns + Blocks::lanes - 1) / Blocks::lanes;
    const bool large = product_block_rows * a.cols * static_cast<int64_t>(sizeof(T)) > product_block_bytes;
    p.block_rows = !p.by_rows || !(p.thin || large) ? product_block_rows : p.thin ? product_thin_rows : product_fewer_rows;
    const int64_t shared = round_up((a.rows + product_most_pieces - 1) / product_most_pieces, product_block_rows);
    p.piece_rows = shared > product_piece_rows ? shared : product_piece_rows;
    p.pieces = (a.rows + p.piece_rows - 1) / p.piece_rows;
    return p;
  }

  // Of X and Z as the tiles take them.
  inline int64_t padded_columns() const { return thin ? thin : vectors * Blocks::lanes; }
  inline int64_t padded_cols() const { return round_up(cols, Blocks::strip); }
  inline int64_t elements() const { return padded_cols() * padded_columns(); }

  inline int64_t outer_stride() const { return by_rows ? row_stride : col_stride; }
  inline int64_t inner_stride() const { return by_rows ? col_stride : row_stride; }

  // `rows` rows and `some` columns of A, copied.
  inline ProductBlock<T> block(const T* packed, int64_t rows, int64_t some) const {
    const int64_t outer = by_rows ? rows : some, inner = by_rows ? some : rows;
    return {packed, outer, inner, round_up(outer, thin ? product_thin_rows : Blocks::unit) * Blocks::strip, Blocks::strip};
  }
  inline int64_t block_elements() const {
    const ProductBlock<T> largest = block(nullptr, block_rows, cols);
    return largest.strips() * largest.strip_stride;
  }
  inline int64_t y_rows() const { return round_up(block_rows, Blocks::strip); }
  inline int64_t y_elements() const { return y_rows() * (thin ? thin : Blocks::most_vectors * Blocks::lanes); }

  // Of index i of the inner direction, in vectors of ThinTiles.
  static inline int64_t inner_offset(int64_t i, int64_t width) {
    return i / Blocks::strip * Blocks::strip * width + i % Blocks::strip;
  }

  // The block that begins with row `first`; none where there is no such row.
  inline ProductAhead ahead(const MatrixView& a, int64_t first, int64_t bytes) const {
    const char* const data = static_cast<const char*>(a.data);
    if (first >= rows) return {data, 0, 0, 0, 0, 0, 0};
    const int64_t count = rows - first < block_rows ? rows - first : block_rows;
    const char* const corner = data + first * row_stride * bytes;
    if (by_rows) return {corner, (cols * bytes + 63) / 64, 64, count, row_stride * bytes, 0, 0};
    return {corner, cols, col_stride * bytes, (count * bytes + 63) / 64, 64, 0, 0};
  }

  // Calls f(tiles, where their columns begin in a padded row) for one group of registers after the other.
  template <typename F>
  inline __attribute__((always_inline)) void for_each_wide(F f) const {
    constexpr int lanes = Blocks::lanes;
    const int64_t groups = (vectors + Blocks::most_vectors - 1) / Blocks::most_vectors;
    int64_t first = 0;
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t here = vectors / groups + (g < vectors % groups);
      switch (here) {
        case 1: f(WideTiles<T, 1>(), first); break;
        case 2: f(WideTiles<T, 2>(), first); break;
        case 3: f(WideTiles<T, 3>(), first); break;
        default:
          if constexpr (Blocks::most_vectors == 4) f(WideTiles<T, 4>(), first);
      }
      first += here * lanes;
    }
  }

  // Calls f(j, c, count, offset, stride) for columns c .. c + count of row j of X or Z: the first at offset, one every stride.
  template <typename F>
  inline void for_each_run(int64_t first_row, int64_t last_row, F f) const {
    if (thin) {
      for (int64_t j = first_row; j < last_row; ++j)
        f(j, int64_t{0}, columns, by_rows ? inner_offset(j, thin) : j * thin, by_rows ? int64_t{Blocks::strip} : int64_t{1});
      return;
    }
    for_each_wide([&](auto tiles, int64_t first) {
      constexpr int64_t width = decltype(tiles)::width;
      const int64_t count = columns - first < width ? columns - first : width;
      for (int64_t j = first_row; j < last_row; ++j) f(j, first, count, padded_cols() * first + j * width, int64_t{1});
    });
  }
};

// Sums of squares: short ones in T, and those in double.
template <typename T>
struct SquareSum {
  typedef Simd<T> S;
  static constexpr int group = 3, most_terms = 8;
  typename S::Vector squares[group] = {};
  VectorD total = {};
  int terms = 0;

  // One strip of a row.
  inline void add(const T* p) {
    constexpr int groups = ProductBlocks<T>::strip / (group * S::lanes);
    SF_UNROLL
    for (int v = 0; v < group * groups; ++v) {
      const typename S::Vector x = S::load_unaligned(p + v * S::lanes);
      squares[v % group] += x * x;
    }
    terms += groups;
    if (terms >= most_terms) flush();
  }
  inline void flush() {
    for (int v = 0; v < group; ++v) {
      if constexpr (sizeof(T) == sizeof(double))
        total += squares[v];
      else
        total += S::template widen<0>(squares[v]) + S::template widen<1>(squares[v]);
      squares[v] = typename S::Vector{};
    }
    terms = 0;
  }
  inline double value() {
    flush();
    return SimdD::sum(total);
  }
};

// Outer rows first .. last of a block, into `packed`, where the block lies. `corner` is the block's first entry. Returns the sum
// of their squares.
template <typename T, typename Element>
static double pack_product(const typename Element::Bits* corner, int64_t outer_stride, int64_t inner_stride,
                           const ProductBlock<T>& block, int64_t first, int64_t last, T* packed) {
  SquareSum<T> squares;
  typedef typename Element::Bits Bits;
  constexpr int strip = ProductBlock<T>::strip;
  constexpr int64_t ahead = 12, line = 64 / sizeof(Bits);
  const bool short_rows = block.strips() <= 4;  // they end before the hardware knows that they have begun
  for (int64_t o = first; o < last; ++o) {
    for (int64_t s = 0; s < block.strips(); ++s) {
      T* const to = packed + s * block.strip_stride + o * strip;
      const Bits* const from = corner + o * outer_stride + s * strip * inner_stride;
      const int64_t length = block.length(s);
      if (length == strip && inner_stride == 1) {
        if (short_rows)
          for (int64_t l = 0; l < strip; l += line) __builtin_prefetch(from + ahead * outer_stride + l);
        for (int l = 0; l < strip; ++l) to[l] = static_cast<T>(Element::value(from[l]));
      } else {
        for (int64_t l = 0; l < length; ++l) to[l] = static_cast<T>(Element::value(from[l * inner_stride]));
        for (int64_t l = length; l < strip; ++l) to[l] = 0;
      }
      squares.add(to);
    }
  }
  return squares.value();
}

template <typename T>
struct ProductWork {
  const T* x;
  T *z, *packed, *y;
  double energy;

  inline void clear_y(int64_t count) {
    for (int64_t k = 0; k < count; ++k) y[k] = 0;
  }
};

// Zeros behind the last outer row.
template <typename T>
static void pad_product(const ProductBlock<T>& block, T* packed) {
  for (int64_t s = 0; s < block.strips(); ++s)
    for (int64_t k = block.outer * block.row_stride; k < block.strip_stride; ++k) packed[s * block.strip_stride + k] = 0;
}

// Rows first .. last of A; `after` is the row that the same thread goes on with.
template <typename T, typename Element>
static void wide_product(const MatrixView& a, const ProductPlan<T>& plan, int64_t first, int64_t last, int64_t after,
                         ProductWork<T>& work) {
  for (int64_t i = first; i < last; i += plan.block_rows) {
    const int64_t rows = last - i < plan.block_rows ? last - i : plan.block_rows;
    const auto* const corner = static_cast<const typename Element::Bits*>(a.data) + i * a.row_stride;
    const ProductBlock<T> block = plan.block(work.packed, rows, plan.cols);
    work.energy += pack_product<T, Element>(corner, plan.outer_stride(), plan.inner_stride(), block, 0, block.outer, work.packed);
    pad_product(block, work.packed);
    ProductAhead ahead = plan.ahead(a, i + rows < last ? i + rows : after, sizeof(typename Element::Bits));
    plan.for_each_wide([&](auto tiles, int64_t column) {
      typedef decltype(tiles) Tiles;
      const T* const x = work.x + plan.padded_cols() * column;
      T* const z = work.z + plan.padded_cols() * column;
      work.clear_y(plan.y_rows() * Tiles::width);
      if (plan.by_rows) {
        Tiles::across(block, x, work.y, ahead);
        Tiles::down(block, work.y, z, ahead);
      } else {
        Tiles::down(block, x, work.y, ahead);
        Tiles::across(block, work.y, z, ahead);
      }
    });
  }
}

// As wide_product, A by its rows: few enough for the first level cache, and where nothing is to be converted without a copy.
template <typename T, typename Element, typename Tiles>
static void thin_rows(const MatrixView& a, const ProductPlan<T>& plan, int64_t first, int64_t last, ProductWork<T>& work) {
  typedef typename Element::Bits Bits;
  constexpr int strip = ProductBlocks<T>::strip;
  for (int64_t i = first; i < last; i += plan.block_rows) {
    const int64_t rows = last - i < plan.block_rows ? last - i : plan.block_rows;
    const Bits* const corner = static_cast<const Bits*>(a.data) + i * a.row_stride;
    const bool in_place = sizeof(Bits) == sizeof(T) && a.col_stride == 1 && rows == plan.block_rows;
    const int64_t direct = in_place ? round_down(plan.cols, strip) : 0;  // columns
    const ProductBlock<T> there{reinterpret_cast<const T*>(corner), rows, direct, strip, a.row_stride};
    const ProductBlock<T> copy = plan.block(work.packed, rows, plan.cols - direct);
    work.clear_y(plan.y_rows() * Tiles::width);
    Tiles::across(there, work.x, work.y);
    SquareSum<T> squares;
    for (int64_t o = 0; o < rows; ++o)
      for (int64_t s = 0; s < there.strips(); ++s) squares.add(there.at(s, o));
    work.energy += squares.value();
    if (copy.inner > 0) {
      work.energy +=
          pack_product<T, Element>(corner + direct * a.col_stride, a.row_stride, a.col_stride, copy, 0, rows, work.packed);
      pad_product(copy, work.packed);
      Tiles::across(copy, work.x + direct * Tiles::width, work.y);
      Tiles::down(copy, work.y, work.z + direct * Tiles::width);
    }
    Tiles::down(there, work.y, work.z);
  }
}

// As wide_product, A by its columns.
template <typename T, typename Element, typename Tiles>
static void thin_columns(const MatrixView& a, const ProductPlan<T>& plan, int64_t first, int64_t last, ProductWork<T>& work) {
  for (int64_t i = first; i < last; i += plan.block_rows) {
    const int64_t rows = last - i < plan.block_rows ? last - i : plan.block_rows;
    const auto* const corner = static_cast<const typename Element::Bits*>(a.data) + i * a.row_stride;
    const ProductBlock<T> block = plan.block(work.packed, rows, plan.cols);
    work.clear_y(plan.y_rows() * Tiles::width);
    work.energy += pack_product<T, Element>(corner, a.col_stride, a.row_stride, block, 0, plan.cols, work.packed);
    Tiles::down(block, work.x, work.y);
    // 0 times an infinity of X, in the padding, would reach all of Z.
    for (int64_t r = rows; r < block.strips() * ProductBlocks<T>::strip; ++r)
      for (int k = 0; k < Tiles::width; ++k) work.y[plan.inner_offset(r, Tiles::width) + k * ProductBlocks<T>::strip] = 0;
    pad_product(block, work.packed);
    Tiles::across(block, work.y, work.z);
  }
}

template <typename T, typename Element>
static double gram_product_rows(const MatrixView& a, const ProductPlan<T>& plan, int64_t first, int64_t last, int64_t after,
                                ProductWork<T>& work) {
  const auto thin = [&](auto tiles) {
    typedef decltype(tiles) Tiles;
    if (plan.by_rows)
      thin_rows<T, Element, Tiles>(a, plan, first, last, work);
    else
      thin_columns<T, Element, Tiles>(a, plan, first, last, work);
  };
  constexpr int lanes = ProductBlocks<T>::lanes;
  switch (plan.thin) {
    case 0: wide_product<T, Element>(a, plan, first, last, after, work); break;
    case 1: thin(ThinTiles<T, 1>()); break;
    case 2:
      if constexpr (lanes >= 4) thin(ThinTiles<T, 2>());
      break;
    case 4:
      if constexpr (lanes >= 8) thin(ThinTiles<T, 4>());
      break;
    default:
      if constexpr (lanes >= 16) thin(ThinTiles<T, 8>());
  }
  return work.energy;
}

template <typename T>
static GramProductSizes gram_product_sizes(const MatrixView& a, int64_t columns) {
  const ProductPlan<T> plan = ProductPlan<T>::of(a, columns);
  Arena scratch{nullptr, 0}, vectors{nullptr, 0};
  vectors.take<T>(plan.elements());
  scratch.take<T>(plan.block_elements());
  scratch.take<T>(plan.y_elements());
  return {plan.pieces, vectors.used, scratch.used};
}

// X as the tiles take it, zero in the padding.
template <typename T>
static void gram_product_begin(const MatrixView& a, int64_t columns, const T* x, void* vectors) {
  const ProductPlan<T> plan = ProductPlan<T>::of(a, columns);
  T* const packed = static_cast<T*>(vectors);
  for (int64_t k = 0; k < plan.elements(); ++k) packed[k] = 0;
  plan.for_each_run(0, plan.cols, [&](int64_t j, int64_t c, int64_t count, int64_t offset, int64_t stride) {
    const T* const from = x + j * columns + c;
    T* const to = packed + offset;
    for (int64_t k = 0; k < count; ++k) to[k * stride] = from[k];
  });
}

template <typename T>
static double gram_product_piece(const MatrixView& a, int64_t columns, int64_t piece, int64_t next_piece, const void* vectors,
                                 void* partial, void* scratch) {
  const ProductPlan<T> plan = ProductPlan<T>::of(a, columns);
  Arena arena{static_cast<char*>(scratch), 0};
  ProductWork<T> work{static_cast<const T*>(vectors), static_cast<T*>(partial), nullptr, nullptr, 0};
  work.packed = arena.take<T>(plan.block_elements());
  work.y = arena.take<T>(plan.y_elements());
  for (int64_t k = 0; k < plan.elements(); ++k) work.z[k] = 0;
  const int64_t first = piece * plan.piece_rows, after = next_piece * plan.piece_rows;
  const int64_t last = first + plan.piece_rows < plan.rows ? first + plan.piece_rows : plan.rows;
  if constexpr (sizeof(T) == sizeof(double)) {
    return gram_product_rows<T, Float64>(a, plan, first, last, after, work);
  } else {
    switch (a.element) {
      case ElementType::float16: return gram_product_rows<T, Float16>(a, plan, first, last, after, work);
      case ElementType::bfloat16: return gram_product_rows<T, BFloat16>(a, plan, first, last, after, work);
      default: return gram_product_rows<T, Float32>(a, plan, first, last, after, work);
    }
  }
}

template <typename T>
static void gram_product_end(const MatrixView& a, int64_t columns, const void* partials, int64_t first, int64_t last, T* z) {
  const ProductPlan<T> plan = ProductPlan<T>::of(a, columns);
  const std::size_t apart = gram_product_sizes<T>(a, columns).vectors_bytes / sizeof(T);
  plan.for_each_run(first, last, [&](int64_t j, int64_t c, int64_t count, int64_t offset, int64_t stride) {
    const T* const from = static_cast<const T*>(partials) + offset;
    T* const to = z + j * columns + c;
    for (int64_t k = 0; k < count; ++k) to[k] = from[k * stride];
    for (int64_t p = 1; p < plan.pieces; ++p)
      for (int64_t k = 0; k < count; ++k) to[k] += from[p * apart + k * stride];
  });
}
