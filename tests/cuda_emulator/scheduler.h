// The threads of a block, one fiber each, and what they wait for. Blocks run one after another.
//
// Every thread runs until it waits. Whose turn is next is the order's to say:
//   forward, reverse   a warp runs until the whole of it waits for the block; then the next warp, upwards or downwards;
//   random             warps and lanes are drawn anew each time, from a seed.
// Nobody waits for more than CUDA promises: past a warp's exchange or barrier a lane may reach its next one before another
// lane has left this one.
//
// CUDA leaves undefined what happens when threads wait at different barriers, or for a thread that has exited. Here both are
// errors, which name the block, its threads and the source lines at which they wait.
#pragma once

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "fibers.h"

namespace emulator {

constexpr int lanes = 32;
constexpr int max_threads = 1024;
constexpr int red_zone = 256;            // bytes on either side of shared memory; they stay as they are
constexpr unsigned canary = 0x5fca11ed;  // at the bottom of each stack

enum Order { forward, reverse, random_order };

// What a launch gets from Python: the same fields in the same order in __init__.py.
struct Launch {
  long long grid_x, grid_y, threads, shared, order, seed;
  void* stacks;
  long long stack_bytes;
  char* message;
  long long message_bytes;
  const unsigned long long* storage;  // address and bytes of the memory behind each tensor
  long long storages;
  long long seconds;  // of the CPU's time, at most
};

enum class Wait : unsigned char { none, block, warp, exited };

// A place in the source where threads meet.
struct Site {
  const char* operation;
  int line;
  unsigned mask;
  bool operator==(const Site& other) const { return operation == other.operation && line == other.line && mask == other.mask; }
};

struct Thread {
  Fiber fiber;
  Wait wait;
  Site site;
  // An exchange: what the lane gives, the lane it asks, what it gets.
  unsigned long long given, received;
  int source;
};

struct Warp {
  unsigned runnable, waiting;  // lanes; waiting: at a meeting of the warp
};

struct Index {
  unsigned x, y, z;
};

struct Block {
  const Launch* launch;
  void (*call)(void**);
  void** arguments;
  const char* kernel;
  Fiber scheduler;
  Thread threads[max_threads];
  Warp warps[max_threads / lanes];
  unsigned char* shared;
  int count, warp_count, current, arrived, exited;
  bool failed;
  bool running;  // a thread, not the scheduler
  unsigned long long random_state;
};

static Block block_state;  // static: an inline variable would be one for all libraries
static Index thread_index, block_index, block_dim, grid_dim;

// The linker's: where this library begins and ends.
extern "C" char __ehdr_start __attribute__((visibility("hidden")));
extern "C" char _end __attribute__((visibility("hidden")));

// Of an instruction in it: Python makes it a line of the source.
inline unsigned long offset(const void* code) {
  return static_cast<unsigned long>(static_cast<const char*>(code) - &__ehdr_start);
}

// races.h's, where races are looked for.
#ifdef SF_RACES
inline void begin_launch();
inline void end_launch();
inline void begin_block();
inline void join_block();
inline void join_lanes(int first, unsigned mask);
#else
inline void begin_launch() {}
inline void end_launch() {}
inline void begin_block() {}
inline void join_block() {}
inline void join_lanes(int, unsigned) {}
#endif

inline unsigned draw(unsigned below) {
  unsigned long long& s = block_state.random_state;
  s ^= s << 13, s ^= s >> 7, s ^= s << 17;
  return static_cast<unsigned>((s >> 32) * below >> 32);
}

// The numbers 0 .. count - 1 in the launch's order.
inline void arrange(int* indices, int count) {
  for (int i = 0; i < count; ++i) indices[i] = block_state.launch->order == reverse ? count - 1 - i : i;
  if (block_state.launch->order != random_order) return;
  for (int i = count - 1; i > 0; --i) {
    const int j = static_cast<int>(draw(i + 1));
    const int keep = indices[i];
    indices[i] = indices[j], indices[j] = keep;
  }
}

// Adds to the launch's message; the first call names kernel and block.
__attribute__((format(printf, 1, 2))) inline void report(const char* format, ...) {
  Block& block = block_state;
  block.running = false;
  const Launch& launch = *block.launch;
  const auto bytes = static_cast<size_t>(launch.message_bytes);
  size_t used = strlen(launch.message);
  if (!block.failed) used += snprintf(launch.message, bytes, "%s, block (%u, %u): ", block.kernel, block_index.x, block_index.y);
  block.failed = true;
  if (used >= bytes) return;
  va_list values;
  va_start(values, format);
  vsnprintf(launch.message + used, bytes - used, format, values);
  va_end(values);
}

inline void leave() {
  block_state.running = false;
  switch_fiber(block_state.threads[block_state.current].fiber, block_state.scheduler);
}

// Ends this fiber's run for good: the scheduler sees `failed` and returns.
[[noreturn]] inline void abandon() {
  leave();
  __builtin_trap();
}

// All threads of the block meet here.
inline void wait_for_block(const char* operation, int line) {
  Block& block = block_state;
  Thread& thread = block.threads[block.current];
  thread.wait = Wait::block;
  thread.site = {operation, line, 0};
  block.warps[block.current / lanes].runnable &= ~(1u << block.current % lanes);
  ++block.arrived;
  leave();
}

// The lanes of `mask` meet here; the last to come has finish(first thread of the warp, mask) done, for them all.
template <class Finish>
void wait_for_warp(const char* operation, int line, unsigned mask, Finish finish) {
  Block& block = block_state;
  const int lane = block.current % lanes, first = block.current - lane;
  Thread& thread = block.threads[block.current];
  if (!(mask >> lane & 1)) {
    report("thread %d is not in the mask %#x it gives %s, line %d", block.current, mask, operation, line);
    abandon();
  }
  Warp& warp = block.warps[block.current / lanes];
  thread.wait = Wait::warp;
  thread.site = {operation, line, mask};
  warp.waiting |= 1u << lane;
  warp.runnable &= ~(1u << lane);
  bool together = (warp.waiting & mask) == mask;
  for (unsigned left = mask; together && left; left &= left - 1)
    together = block.threads[first + __builtin_ctz(left)].site == thread.site;
  if (together) {
    finish(first, mask);
    for (unsigned left = mask; left; left &= left - 1) block.threads[first + __builtin_ctz(left)].wait = Wait::none;
    warp.waiting &= ~mask;
    warp.runnable |= mask;
  }
  leave();
}

inline void run_thread() {
  Block& block = block_state;
  enter_fiber(block.scheduler);
  block.call(block.arguments);
  block.threads[block.current].wait = Wait::exited;
  block.warps[block.current / lanes].runnable &= ~(1u << block.current % lanes);
  ++block.exited;
  leave();
  __builtin_trap();
}

inline bool same_state(const Thread& a, const Thread& b) {
  return a.wait == b.wait && (a.wait == Wait::exited || a.wait == Wait::none || a.site == b.site);
}

// Nobody can go on: who waits where, threads alike taken together.
inline void report_deadlock(const char* what) {
  const Block& block = block_state;
  report("%s", what);
  for (int i = 0; i < block.count;) {
    int end = i + 1;
    while (end < block.count && same_state(block.threads[i], block.threads[end])) ++end;
    report("; thread%s %d", end - i > 1 ? "s" : "", i);
    if (end - i > 1) report(" to %d", end - 1);
    const char* wait = end - i > 1 ? "wait" : "waits";
    const Thread& thread = block.threads[i];
    if (thread.wait == Wait::exited) {
      report(" exited");
    } else if (thread.wait == Wait::block) {
      report(" %s at %s, line %d", wait, thread.site.operation, thread.site.line);
    } else {
      const unsigned missing = thread.site.mask & ~block.warps[i / lanes].waiting;
      report(" %s at %s, line %d, mask %#x", wait, thread.site.operation, thread.site.line, thread.site.mask);
      if (missing) report(", for lane %d", __builtin_ctz(missing));
    }
    i = end;
  }
}

// Lets everyone past __syncthreads once all are there.
inline void release_block() {
  Block& block = block_state;
  for (int i = 1; i < block.count; ++i)
    if (!(block.threads[i].site == block.threads[0].site)) return report_deadlock("threads wait at different barriers");
  for (int i = 0; i < block.count; ++i) {
    block.threads[i].wait = Wait::none;
    block.warps[i / lanes].runnable |= 1u << i % lanes;
  }
  block.arrived = 0;
  join_block();
}

inline int first_lane(unsigned runnable) {
  const long long order = block_state.launch->order;
  if (order == forward) return __builtin_ctz(runnable);
  if (order == reverse) return lanes - 1 - __builtin_clz(runnable);
  const unsigned from = draw(lanes), above = runnable >> from;
  return above ? from + __builtin_ctz(above) : __builtin_ctz(runnable);
}

// Lane after lane, each up to where it waits, until none of the warp is runnable, or until a draw says so.
inline void run_warp(int number) {
  Block& block = block_state;
  while (const unsigned runnable = block.warps[number].runnable) {
    block.current = number * lanes + first_lane(runnable);
    thread_index.x = static_cast<unsigned>(block.current);
    block.running = true;
    switch_fiber(block.scheduler, block.threads[block.current].fiber);
    if (block.failed || (block.launch->order == random_order && !draw(100))) return;
  }
}

inline void run_block() {
  Block& block = block_state;
  for (int i = 0; i < block.count; ++i) {
    Thread& thread = block.threads[i];
    const auto stride = static_cast<size_t>(block.launch->stack_bytes);
    thread.wait = Wait::none;
    // Tops at different places in a page: at the same, they would all share a few lines of the first cache.
    thread.fiber.bottom = static_cast<char*>(block.launch->stacks) + i * stride;
    thread.fiber.bytes = stride - static_cast<size_t>(i % 61) * 64;
#ifdef __SANITIZE_ADDRESS__
    __asan_unpoison_memory_region(thread.fiber.bottom, stride);
#endif
    *static_cast<unsigned*>(const_cast<void*>(thread.fiber.bottom)) = canary;
    prepare(thread.fiber, run_thread);
  }
  for (int w = 0; w < block.warp_count; ++w) {
    const int live = block.count - w * lanes;
    block.warps[w] = {live >= lanes ? ~0u : (1u << live) - 1, 0};
  }
  block.arrived = block.exited = 0;
  begin_block();
  int order[max_threads / lanes];
  while (block.exited < block.count) {
    if (block.arrived == block.count) release_block();
    bool progress = false;
    arrange(order, block.warp_count);
    for (int i = 0; i < block.warp_count && !block.failed; ++i) {
      if (!block.warps[order[i]].runnable) continue;
      progress = true;
      run_warp(order[i]);
    }
    if (!progress && !block.failed) report_deadlock("deadlock");
    if (block.failed) return;
  }
}

}  // namespace emulator
