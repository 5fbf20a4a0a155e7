// A small pool of std::threads. OpenMP is left alone: torch brings a runtime of its own, and two do not share their threads.
#pragma once

#include <cstdint>
#include <functional>

namespace spectral_fast {

// Runs task(index, worker) for every index in [0, count), worker in [0, workers), each worker on one thread at a time; the
// calling thread is one of them. The task must not throw. All of them run in the default floating-point environment.
//
// One call at a time has the pool. A call that finds it taken (several Python threads at once) runs on its own thread alone, so
// the process never has more busy threads than callers + workers. After fork() the child starts with a new pool.
void parallel_for(int64_t count, int workers, const std::function<void(int64_t index, int worker)>& task);

}  // namespace spectral_fast
