// What a kernel of csrc/cuda may use of CUDA, for a C++ compiler: included before its source.
//
// An exchange between lanes is a place where they meet, and no more: it makes none of their writes to memory visible, only
// __syncwarp and __syncthreads do. Reading a lane that is not in the mask is undefined in CUDA and an error here.
#pragma once

#include <math.h>

#include "launch.h"
#ifdef SF_RACES
#include "races.h"
#endif

#define SF_EXPORT extern "C" __attribute__((visibility("default")))
#define __global__ __attribute__((noinline))
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))

#define threadIdx emulator::thread_index
#define blockIdx emulator::block_index
#define blockDim emulator::block_dim
#define gridDim emulator::grid_dim

inline void* shared_memory() { return emulator::block_state.shared; }

inline void __syncthreads(int line = __builtin_LINE()) { emulator::wait_for_block("__syncthreads", line); }

inline void __syncwarp(unsigned mask = ~0u, int line = __builtin_LINE()) {
  emulator::wait_for_warp("__syncwarp", line, mask, emulator::join_lanes);
}

namespace emulator {

template <class T>
unsigned long long to_bits(T value) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "lanes exchange 32 or 64 bits");
  unsigned long long bits = 0;
  memcpy(&bits, &value, sizeof value);
  return bits;
}

// `source` is a lane of the warp.
template <class T>
T exchange(const char* operation, int line, unsigned mask, T value, int source) {
  Thread& thread = block_state.threads[block_state.current];
  thread.given = to_bits(value);
  thread.source = source;
  wait_for_warp(operation, line, mask, [=](int first, unsigned all) {
    for (unsigned left = all; left; left &= left - 1) {
      Thread& taker = block_state.threads[first + __builtin_ctz(left)];
      if (!(all >> taker.source & 1)) {
        report("thread %d reads lane %d, which is not in the mask %#x of %s, line %d", first + __builtin_ctz(left), taker.source,
               all, operation, line);
        abandon();
      }
      taker.received = block_state.threads[first + taker.source].given;
    }
  });
  T result;
  memcpy(&result, &thread.received, sizeof result);
  return result;
}

// The lanes whose predicate holds.
inline unsigned vote(const char* operation, int line, unsigned mask, bool predicate) {
  Thread& thread = block_state.threads[block_state.current];
  thread.given = predicate;
  wait_for_warp(operation, line, mask, [](int first, unsigned all) {
    unsigned votes = 0;
    for (unsigned left = all; left; left &= left - 1) {
      const int lane = __builtin_ctz(left);
      votes |= static_cast<unsigned>(block_state.threads[first + lane].given) << lane;
    }
    for (unsigned left = all; left; left &= left - 1) block_state.threads[first + __builtin_ctz(left)].received = votes;
  });
  return static_cast<unsigned>(thread.received);
}

inline int current_lane() { return block_state.current % lanes; }

}  // namespace emulator

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = emulator::lanes, int line = __builtin_LINE()) {
  const int lane = emulator::current_lane();
  return emulator::exchange("__shfl_sync", line, mask, value, (lane & -width) | (source & (width - 1)));
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = emulator::lanes, int line = __builtin_LINE()) {
  const int lane = emulator::current_lane(), source = lane ^ bits;
  return emulator::exchange("__shfl_xor_sync", line, mask, value, source > (lane | (width - 1)) ? lane : source);
}

template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = emulator::lanes, int line = __builtin_LINE()) {
  const int lane = emulator::current_lane(), source = lane + static_cast<int>(delta);
  return emulator::exchange("__shfl_down_sync", line, mask, value, source > (lane | (width - 1)) ? lane : source);
}

template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = emulator::lanes, int line = __builtin_LINE()) {
  const int lane = emulator::current_lane(), source = lane - static_cast<int>(delta);
  return emulator::exchange("__shfl_up_sync", line, mask, value, source < (lane & -width) ? lane : source);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, int line = __builtin_LINE()) {
  return emulator::vote("__ballot_sync", line, mask, predicate != 0);
}

inline int __any_sync(unsigned mask, int predicate, int line = __builtin_LINE()) {
  return emulator::vote("__any_sync", line, mask, predicate != 0) != 0;
}

inline int __all_sync(unsigned mask, int predicate, int line = __builtin_LINE()) {
  return emulator::vote("__all_sync", line, mask, predicate != 0) == mask;
}

template <class T>
T __ldg(const T* address) {
  return *address;
}

inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline int __clz(int bits) { return bits ? __builtin_clz(static_cast<unsigned>(bits)) : 32; }
inline int __clzll(long long bits) { return bits ? __builtin_clzll(static_cast<unsigned long long>(bits)) : 64; }

namespace emulator {
template <class To, class From>
To bit_cast(From value) {
  static_assert(sizeof(To) == sizeof(From));
  To result;
  memcpy(&result, &value, sizeof result);
  return result;
}
}  // namespace emulator

inline int __float_as_int(float value) { return emulator::bit_cast<int>(value); }
inline unsigned __float_as_uint(float value) { return emulator::bit_cast<unsigned>(value); }
inline float __int_as_float(int bits) { return emulator::bit_cast<float>(bits); }
inline float __uint_as_float(unsigned bits) { return emulator::bit_cast<float>(bits); }
inline long long __double_as_longlong(double value) { return emulator::bit_cast<long long>(value); }
inline double __longlong_as_double(long long bits) { return emulator::bit_cast<double>(bits); }

// CUDA's min and max are not templates: a call with two types is ambiguous there too.
#define SF_MIN_MAX(T)                              \
  inline T min(T a, T b) { return b < a ? b : a; } \
  inline T max(T a, T b) { return a < b ? b : a; }
SF_MIN_MAX(int)
SF_MIN_MAX(unsigned)
SF_MIN_MAX(long long)
SF_MIN_MAX(unsigned long long)
#undef SF_MIN_MAX
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline double max(double a, double b) { return fmax(a, b); }
inline float rsqrt(float value) { return 1 / sqrtf(value); }
inline double rsqrt(double value) { return 1 / sqrt(value); }

#define SF_VECTORS(T, name, bytes2, bytes4)                  \
  struct __align__(bytes2) name##2 { T x, y; };              \
  struct __align__(bytes4) name##4 { T x, y, z, w; };        \
  inline name##2 make_##name##2(T x, T y) { return {x, y}; } \
  inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
SF_VECTORS(float, float, 8, 16)
SF_VECTORS(double, double, 16, 16)
SF_VECTORS(int, int, 8, 16)
SF_VECTORS(long long, longlong, 16, 16)
#undef SF_VECTORS
