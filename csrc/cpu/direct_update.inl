// The pass that both stages of small matrices are made of: apply the pending update of rank one or two, and form the product with
// the next reflector while the rows are in registers.
//
//   A <- A - v w^T [- y u^T],   sum <- A^T v_next        one read and one write of A
//
// The product over rows is summed in blocks, and the blocks are summed: a single running sum would lose sqrt(rows) units. Where
// `precise`, what the sum of the blocks loses is kept too (Kahan 1965): the product is sum - lost.

struct RankOne {
  const double *col, *row;
};

static constexpr int64_t sum_block = 32;

// Rows first .. last, columns from .. ld of a (row-major); `from` and ld are multiples of a register. part, sum and
// lost (only where precise): ld.
template <int rank, bool precise>
static void update_and_multiply(double* a, int64_t ld, int64_t first, int64_t last, int64_t from, RankOne one, RankOne two,
                                const double* v_next, double* sum, double* lost, double* part) {
  typedef SimdD S;
  typedef typename S::Vector V;
  for (int64_t j = from; j < ld; j += S::lanes) {
    S::store(sum + j, V{});
    if constexpr (precise) S::store(lost + j, V{});
  }

  for (int64_t block = first; block < last; block += sum_block) {
    const int64_t end = block + sum_block < last ? block + sum_block : last;
    for (int64_t j = from; j < ld; j += S::lanes) S::store(part + j, V{});
    int64_t i = block;
    for (; i + 4 <= end; i += 4) {
      double* const a0 = a + i * ld;
      double *const a1 = a0 + ld, *const a2 = a1 + ld, *const a3 = a2 + ld;
      const double *const v = one.col + i, *const y = two.col + i, *const next = v_next + i;
      for (int64_t j = from; j < ld; j += S::lanes) {
        const V w = S::load(one.row + j);
        V x0 = S::load(a0 + j) - v[0] * w, x1 = S::load(a1 + j) - v[1] * w;
        V x2 = S::load(a2 + j) - v[2] * w, x3 = S::load(a3 + j) - v[3] * w;
        if constexpr (rank == 2) {
          const V u = S::load(two.row + j);
          x0 -= y[0] * u, x1 -= y[1] * u, x2 -= y[2] * u, x3 -= y[3] * u;
        }
        S::store(a0 + j, x0), S::store(a1 + j, x1), S::store(a2 + j, x2), S::store(a3 + j, x3);
        S::store(part + j, S::load(part + j) + ((next[0] * x0 + next[1] * x1) + (next[2] * x2 + next[3] * x3)));
      }
    }
    for (; i < end; ++i) {
      for (int64_t j = from; j < ld; j += S::lanes) {
        V x = S::load(a + i * ld + j) - one.col[i] * S::load(one.row + j);
        if constexpr (rank == 2) x -= two.col[i] * S::load(two.row + j);
        S::store(a + i * ld + j, x);
        S::store(part + j, S::load(part + j) + v_next[i] * x);
      }
    }
    for (int64_t j = from; j < ld; j += S::lanes) {
      const V before = S::load(sum + j);
      if constexpr (precise) {
        const V term = S::load(part + j) - S::load(lost + j), total = before + term;
        S::store(lost + j, (total - before) - term);
        S::store(sum + j, total);
      } else {
        S::store(sum + j, before + S::load(part + j));
      }
    }
  }
}
