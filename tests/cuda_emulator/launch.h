// A launch: its blocks one after another, in the order of the threads, each with shared memory full of NaN.
#pragma once

#ifdef __x86_64__
#include <xmmintrin.h>
#endif

#include "faults.h"
#include "scheduler.h"

namespace emulator {

inline bool intact(const unsigned char* zone) {
  for (int i = 0; i < red_zone; ++i)
    if (zone[i] != 0xff) return false;
  return true;
}

// CuPy has float32 subnormals flushed to zero, as operands and as results. Here a mode of the CPU does so, but for double too:
// only where a source uses none.
struct FlushSubnormals {
#ifdef __x86_64__
  unsigned before = _mm_getcsr();
  FlushSubnormals() {
    if (sizeof(SF_SCALAR) + sizeof(SF_WIDE) == 2 * sizeof(float)) _mm_setcsr(before | 0x8040);
  }
  ~FlushSubnormals() { _mm_setcsr(before); }
#endif
};

// Runs all blocks; 0, or 1 with a message.
inline int run_grid(const char* kernel, void (*call)(void**), void** arguments, const Launch& launch) {
  Block& block = block_state;
  block.launch = &launch;
  block.call = call;
  block.arguments = arguments;
  block.kernel = kernel;
  block.count = static_cast<int>(launch.threads);
  block.warp_count = (block.count + lanes - 1) / lanes;
  block.failed = block.running = false;
  block.random_state = 0x9e3779b97f4a7c15ull * (static_cast<unsigned long long>(launch.seed) + 1);
  launch.message[0] = 0;
  thread_index = {0, 0, 0};
  block_dim = {static_cast<unsigned>(launch.threads), 1, 1};
  grid_dim = {static_cast<unsigned>(launch.grid_x), static_cast<unsigned>(launch.grid_y), 1};
  const auto shared = static_cast<size_t>(launch.shared);
#ifdef __SANITIZE_ADDRESS__
  constexpr int zone = 0;  // the allocator has its own
#else
  constexpr int zone = red_zone;
#endif
  auto* memory = static_cast<unsigned char*>(malloc(shared + 2 * zone));
  block.shared = memory + zone;
  begin_launch();
  const FlushSubnormals mode;
  const Faults faults(launch.seconds);
  const long long blocks = launch.grid_x * launch.grid_y;
  int* order = static_cast<int*>(malloc(blocks * sizeof(int)));
  arrange(order, static_cast<int>(blocks));
  for (long long i = 0; i < blocks && !block.failed; ++i) {
    block_index = {static_cast<unsigned>(order[i] % launch.grid_x), static_cast<unsigned>(order[i] / launch.grid_x), 0};
    memset(memory, 0xff, shared + 2 * zone);
    run_block();
    if (zone && !block.failed && !(intact(memory) && intact(block.shared + shared)))
      report("wrote outside its %zu bytes of shared memory", shared);
    for (int t = 0; t < block.count && !block.failed; ++t)
      if (*static_cast<const unsigned*>(block.threads[t].fiber.bottom) != canary) report("thread %d overflowed its stack", t);
  }
  end_launch();
  free(order);
  free(memory);
  return block.failed;
}

}  // namespace emulator
