// Races, by happens-before: for every four bytes of shared memory and of the tensors, who wrote and read them last.
//
// Two accesses to the same place by different threads, one of them a write, are a race unless the first is ordered before the
// second: by __syncthreads between them in the block, or by __syncwarp in the warp. Shuffles and votes order nothing, nor does
// anything order two blocks of a launch. So a missing barrier is seen even where the threads happen to run in an order that
// hides it, and a barrier that is there is known to be enough. Writing the same value twice is a race too.
//
// The compiler reports each access: -fsanitize=thread, whose runtime this is in place of ThreadSanitizer's own. Each lane keeps
// a vector clock over its warp; the block's barriers are counted (FastTrack: Flanagan, Freund, PLDI 2009). An access outside the
// tensors' storage and the shared memory is reported as well.
#pragma once

#include "scheduler.h"

namespace emulator {

using Clock = unsigned;

struct Access {
  unsigned block;  // which of those run, from 1; 0: none
  unsigned epoch;  // barriers of the block before it
  Clock clock;     // the lane's
  int thread;
  const void* code;
};

enum class Readers : unsigned char { one, warp, warps, blocks };

struct Cell {
  Access write, read;  // read: the last one
  Readers readers;
  unsigned set;  // of the warp's lanes, in `sets`; 0: none yet
};

struct LaneClocks {
  Clock of[lanes];  // 0: has not read
};

struct Range {
  uintptr_t begin, end;
  Cell* cells;
};

struct Races {
  Range* ranges;  // the first is shared memory
  int range_count;
  LaneClocks* sets;
  unsigned set_count, set_capacity;  // set_count: the last one
  LaneClocks clocks[max_threads];
  unsigned block, epoch;
};

static Races races;

#define SF_UNTRACKED __attribute__((no_sanitize_thread, noinline))

SF_UNTRACKED inline Range range_of(uintptr_t begin, size_t bytes) {
  return {begin, begin + bytes, static_cast<Cell*>(calloc(bytes / 4 + 1, sizeof(Cell)))};
}

SF_UNTRACKED inline void begin_launch() {
  const Launch& launch = *block_state.launch;
  races.block = 0;
  races.range_count = static_cast<int>(launch.storages) + 1;
  races.ranges = static_cast<Range*>(malloc(races.range_count * sizeof(Range)));
  races.ranges[0] = range_of(reinterpret_cast<uintptr_t>(block_state.shared), launch.shared);
  for (int i = 1; i < races.range_count; ++i) races.ranges[i] = range_of(launch.storage[2 * i - 2], launch.storage[2 * i - 1]);
}

SF_UNTRACKED inline void end_launch() {
  for (int i = 0; i < races.range_count; ++i) free(races.ranges[i].cells);
  free(races.ranges);
  free(races.sets);
  races.sets = nullptr;
  races.set_count = races.set_capacity = 0;
}

SF_UNTRACKED inline void begin_block() {
  ++races.block;
  races.epoch = 0;
  for (int t = 0; t < block_state.count; ++t) {
    races.clocks[t] = {};
    races.clocks[t].of[t % lanes] = 1;
  }
}

SF_UNTRACKED inline void join_block() { ++races.epoch; }

// After __syncwarp, every lane of the mask knows what each of them did before.
SF_UNTRACKED inline void join_lanes(int first, unsigned mask) {
  LaneClocks joined = {};
  for (unsigned left = mask; left; left &= left - 1) {
    const LaneClocks& clocks = races.clocks[first + __builtin_ctz(left)];
    for (int i = 0; i < lanes; ++i)
      if (joined.of[i] < clocks.of[i]) joined.of[i] = clocks.of[i];
  }
  for (unsigned left = mask; left; left &= left - 1) {
    const int lane = __builtin_ctz(left);
    races.clocks[first + lane] = joined;
    ++races.clocks[first + lane].of[lane];
  }
}

SF_UNTRACKED inline bool known(int thread, int other, Clock clock) {
  return thread / lanes == other / lanes && races.clocks[thread].of[other % lanes] >= clock;
}

// Whether `thread` comes after an access of its own block.
SF_UNTRACKED inline bool ordered(const Access& before, int thread) {
  return before.epoch < races.epoch || before.thread == thread || known(thread, before.thread, before.clock);
}

SF_UNTRACKED inline void report_race(const char* now, const char* then, Access before, const void* code) {
  report("race: thread %d %s at pc %#lx what thread %d ", block_state.current, now, offset(code), before.thread);
  if (before.block != races.block) report("of another block ");
  report("%s at pc %#lx, and no barrier orders them", then, offset(before.code));
  abandon();
}

// The cell's set, empty.
SF_UNTRACKED inline LaneClocks& empty_set(Cell& cell) {
  if (!cell.set) {
    cell.set = ++races.set_count;
    if (cell.set >= races.set_capacity) {
      races.set_capacity = races.set_capacity * 2 + 64;
      races.sets = static_cast<LaneClocks*>(realloc(races.sets, races.set_capacity * sizeof(LaneClocks)));
    }
  }
  return races.sets[cell.set] = {};
}

SF_UNTRACKED inline void note_read(Cell& cell, const Access& now) {
  Access& last = cell.read;
  const bool other_block = last.block && last.block != now.block;
  if (cell.readers == Readers::blocks || other_block) {
    cell.readers = Readers::blocks;
    return;  // the last of another block than those still to come
  }
  if (!last.block || last.epoch != now.epoch) {
    cell.readers = Readers::one;  // a write that comes after this one comes after those before the barrier
  } else if (last.thread / lanes != now.thread / lanes) {
    cell.readers = Readers::warps;
  } else if (cell.readers == Readers::one && last.thread != now.thread) {
    cell.readers = Readers::warp;
    empty_set(cell).of[last.thread % lanes] = last.clock;
  }
  if (cell.readers == Readers::warp) races.sets[cell.set].of[now.thread % lanes] = now.clock;
  last = now;
}

// Whether a write of `thread` comes after all the reads. If not, `last` is one of which it does not.
SF_UNTRACKED inline bool after_reads(const Cell& cell, int thread, Access& last) {
  last = cell.read;
  if (!last.block) return true;
  if (cell.readers == Readers::blocks || last.block != races.block) return false;
  if (last.epoch < races.epoch || cell.readers == Readers::one) return ordered(last, thread);
  if (cell.readers == Readers::warps || last.thread / lanes != thread / lanes) return false;
  for (int lane = 0; lane < lanes; ++lane) {
    const Clock clock = races.sets[cell.set].of[lane];
    last.thread = thread / lanes * lanes + lane;
    if (clock && last.thread != thread && !known(thread, last.thread, clock)) return false;
  }
  return true;
}

SF_UNTRACKED inline Range* find_range(uintptr_t address, size_t bytes) {
  for (int i = 0; i < races.range_count; ++i) {
    Range& range = races.ranges[i];
    if (address >= range.begin && address + bytes <= range.end) return &range;
  }
  return nullptr;
}

SF_UNTRACKED inline bool private_address(uintptr_t address) {
  const Fiber& fiber = block_state.threads[block_state.current].fiber;
  return address - reinterpret_cast<uintptr_t>(fiber.bottom) < fiber.bytes ||
         (address >= reinterpret_cast<uintptr_t>(&__ehdr_start) && address < reinterpret_cast<uintptr_t>(&_end));
}

SF_UNTRACKED inline void track(const void* pointer, size_t bytes, size_t alignment, bool write, const void* code) {
  const auto address = reinterpret_cast<uintptr_t>(pointer);
  if (!block_state.running || private_address(address)) return;
  Range* range = find_range(address, bytes);
  if (!range || address % alignment) {
    report("thread %d %s %zu bytes at pc %#lx %s", block_state.current, write ? "writes" : "reads", bytes, offset(code),
           range ? "that are not aligned" : "outside its arguments and its shared memory");
    abandon();
  }
  const bool shared = range == &races.ranges[0];
  const int thread = block_state.current;
  const Access now = {races.block, races.epoch, races.clocks[thread].of[thread % lanes], thread, code};
  const size_t first = (address - range->begin) / 4, last = (address + bytes - 1 - range->begin) / 4;
  for (size_t i = first; i <= last; ++i) {
    Cell& cell = range->cells[i];
    if (shared && cell.write.block < races.block && cell.read.block < races.block) cell = {{}, {}, Readers::one, cell.set};
    if (cell.write.block && (cell.write.block != races.block || !ordered(cell.write, thread)))
      report_race(write ? "writes" : "reads", "wrote", cell.write, code);
    if (!write) {
      note_read(cell, now);
    } else {
      Access read;
      if (!after_reads(cell, thread, read))
        report_race("writes", cell.readers == Readers::warps ? "and another warp read" : "read", read, code);
      cell.write = now;
      cell.read.block = 0;
      cell.readers = Readers::one;
    }
  }
}

}  // namespace emulator

// What the compiler calls. A range is the copy of a structure.
#define SF_HOOK extern "C" __attribute__((no_sanitize_thread, used)) inline void
#define SF_TRACKED(bytes)                                                                                       \
  SF_HOOK __tsan_read##bytes(void* p) { emulator::track(p, bytes, bytes, false, __builtin_return_address(0)); } \
  SF_HOOK __tsan_write##bytes(void* p) { emulator::track(p, bytes, bytes, true, __builtin_return_address(0)); }
SF_TRACKED(1)
SF_TRACKED(2)
SF_TRACKED(4)
SF_TRACKED(8)
SF_TRACKED(16)
SF_HOOK __tsan_read_range(void* p, size_t bytes) { emulator::track(p, bytes, 1, false, __builtin_return_address(0)); }
SF_HOOK __tsan_write_range(void* p, size_t bytes) { emulator::track(p, bytes, 1, true, __builtin_return_address(0)); }
SF_HOOK __tsan_init() {}
SF_HOOK __tsan_func_entry(void*) {}
SF_HOOK __tsan_func_exit(void) {}
#undef SF_TRACKED
#undef SF_HOOK
