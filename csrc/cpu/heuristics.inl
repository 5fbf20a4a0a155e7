// Which path a matrix takes: functions of its shape and the batch alone, so that nothing else changes a bit.
// spectral_fast/heuristics.py says the same in Python, for explain(); a test compares the two.
//
// Measured on an AMD Zen 5 (AVX-512, float32 input, m >= n); the constants of a single stage are in its file.

// Householder QR first pays when m > 5/3 n (Chan 1982; LAPACK xGESDD's crossover is 11/6).
static inline bool reduce_first(int64_t m, int64_t n) { return 3 * m > 5 * n; }

// In double, 128 x 128 takes as long directly as in two stages (before `values`: 0.156 and 0.152 ms; 64 x 64 0.026 and 0.046,
// 256 x 256 1.13 and 0.85). And a float32 bidiagonalization errs by up to sqrt(n) / 2 eps sigma_1 where many values are equal
// (3.2 eps seen at n = 64), more than the 2 eps promised up to this size.
static constexpr int64_t direct_size = 128;
static inline bool directly(int64_t n) { return n <= direct_size; }

// What driver "gram" has a kernel for: tall matrices, whose triangle is large enough for two stages.
static inline bool by_gram(int64_t m, int64_t n) { return reduce_first(m, n) && !directly(n); }

// What `vectors` has a kernel for.
static inline bool vectors_exist(int64_t m, int64_t n) { return !reduce_first(m, n) && !directly(n); }

// All threads inside one matrix. Two against one: 129 x 129 1.1 times as fast, 192 x 192 1.5, 512 x 512 1.9.
static inline bool shared(int64_t n) { return n > direct_size; }

// One matrix to a SIMD lane. Against one matrix a thread, a batch of 64 on one thread: 64 x 64 3.8 times as fast, 256 x 32 1.5,
// 500 x 16 1.7, 2048 x 4 3.7. 8192 entries are half an L2 of 1 MiB in eight lanes of double.
//
// A lonely matrix costs as much as a full register: on one thread the group wins from a batch of 3 (n = 16) or 4 (n = 32 .. 64)
// on, and on two threads from twice that, since a group stays on one. Up to 8 x 8 it wins from the first matrix on.
static constexpr int64_t grouped_size = 64, grouped_entries = 8192, grouped_batch = 8, always_grouped_entries = 64;
static inline bool grouped(int64_t m, int64_t n, int64_t batch) {
  return n <= grouped_size && m * n <= grouped_entries && (batch >= grouped_batch || m * n <= always_grouped_entries);
}
