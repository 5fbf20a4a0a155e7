// The threads of a call: those of torch's OpenMP team (openmp.h) where it is to be had and awake, else a small pool of our own.
#pragma once

#include <atomic>
#include <chrono>
#include <cfenv>
#include <cstdint>
#include <memory>
#include <mutex>

#include "../kernels.h"

namespace spectral_fast {

// Rounding and the treatment of subnormals belong to a thread. A caller that flushes subnormals to zero would get other bits
// from its own matrices than from those of the pool.
class DefaultFloatingPoint {
 public:
  DefaultFloatingPoint() {
    std::fegetenv(&before_);
    std::fesetenv(FE_DFL_ENV);
  }
  ~DefaultFloatingPoint() { std::fesetenv(&before_); }
  DefaultFloatingPoint(const DefaultFloatingPoint&) = delete;

 private:
  std::fenv_t before_;
};

class Pool;

// The threads of one call: the calling thread, which is worker 0, and the pool's. All of them run in the default floating-point
// environment.
//
// One call at a time has other threads. One that finds them taken (several Python threads at once) goes on alone, so the process
// never has more busy threads than callers + workers. After fork() the child has a pool of its own, and never OpenMP's team.
class Crew {
 public:
  // `interrupted` is asked on the calling thread, first when the call is 50 ms old and then every 50 ms, and may take that long
  // itself. Once it answers true the crew is cancelled.
  Crew(int threads, bool (*interrupted)());
  ~Crew();
  Crew(const Crew&) = delete;

  // As many as asked for, or fewer where the pool is taken or the system has no more threads to give.
  int threads() const { return threads_; }

  // Runs piece(index, worker) for every index in [0, count), worker in [0, min(threads(), count)); for the calling thread alone.
  // No piece may throw or call run.
  //
  // Pieces are claimed in ascending order, one at a time, by threads that run them at once: piece i may wait for pieces below i
  // to make progress, and never waits for one that no thread has taken. That holds for one thread, too.
  template <typename Piece>
  void run(int64_t count, Piece piece) {
    run(count, [](void* context, int64_t index, int worker) { (*static_cast<Piece*>(context))(index, worker); }, &piece);
  }

  // All threads, inside one matrix; for the calling thread.
  Team together();
  // One thread, for a matrix that `worker` computes inside a piece of run().
  Team alone(int worker);

  bool cancelled() const { return cancelled_.load(std::memory_order_relaxed); }
  // Asks `interrupted` when it is time to. For the calling thread.
  bool poll();

 private:
  typedef std::chrono::steady_clock Clock;

  void run(int64_t count, void (*piece)(void* context, int64_t index, int worker), void* context);

  const DefaultFloatingPoint environment_;  // first: new threads inherit it
  bool (*const interrupted_)();
  std::atomic<bool> cancelled_{false};
  Clock::time_point next_poll_;
  std::unique_lock<std::mutex> taken_;
  Pool* pool_ = nullptr;
  int threads_ = 1;
};

}  // namespace spectral_fast
