// What the registers of one thread can do: the bounds that the stages are measured against.
//
// `chains` independent recurrences hide the latency of the arithmetic: multiply-adds take 4 cycles and go two a cycle on the CPUs
// of today, so 8 would do, or 12 where multiplication and addition are two instructions. More would not fit into 16 registers.
//
// The compiler can neither know the numbers, which are read from volatile memory, nor drop the result, which is written there;
// and the chains start apart, or they would be computed as one.

static constexpr int chains = 12;

template <typename T, typename Step>
static inline __attribute__((always_inline)) double run_chains(int64_t rounds, Step step) {
  typedef Simd<T> S;
  volatile T start = static_cast<T>(1.1), factor = static_cast<T>(0.7), sink;
  const typename S::Vector c = S::broadcast(factor);
  typename S::Vector x[chains];
  SF_UNROLL
  for (int i = 0; i < chains; ++i) x[i] = S::broadcast(start + static_cast<T>(i));
  for (int64_t round = 0; round < rounds; ++round) {
    SF_UNROLL
    for (int i = 0; i < chains; ++i) x[i] = step(x[i], c);
  }
  for (int i = 1; i < chains; ++i) x[0] += x[i];
  sink = S::tree_sum(x[0]);
  static_cast<void>(sink);
  return static_cast<double>(rounds) * chains * S::lanes;
}

template <typename T>
static double multiply_adds(int64_t rounds) {
  typedef typename Simd<T>::Vector V;
  return run_chains<T>(rounds, [](V x, V c) __attribute__((always_inline)) { return x * c + c; });  // converges to c / (1 - c)
}

static double peak(Work unit, int64_t rounds) {
  switch (unit) {
    case Work::flops_float32: return 2 * multiply_adds<float>(rounds);
    case Work::flops_float64: return 2 * multiply_adds<double>(rounds);
    case Work::divisions:
      return run_chains<double>(rounds, [](VectorD x, VectorD c) __attribute__((always_inline)) { return c / x; });
    default: return 0;
  }
}
