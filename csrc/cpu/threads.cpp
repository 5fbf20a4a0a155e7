#include "threads.h"

#include <pthread.h>

#include <atomic>
#include <cfenv>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>

namespace spectral_fast {
namespace {

// Rounding and the treatment of subnormals belong to a thread. A caller that flushes subnormals to zero would get other bits
// from its own matrices than from those of the pool.
class DefaultFloatingPoint {
 public:
  DefaultFloatingPoint() {
    std::fegetenv(&before_);
    std::fesetenv(FE_DFL_ENV);
  }
  ~DefaultFloatingPoint() { std::fesetenv(&before_); }

 private:
  std::fenv_t before_;
};

class Pool {
 public:
  // Taken for the length of a call.
  std::mutex in_use;

  void run(int64_t count, int workers, const std::function<void(int64_t, int)>& task) {
    {
      std::unique_lock<std::mutex> lock(mutex_);
      try {
        for (; threads_ < workers - 1; ++threads_) std::thread([this, worker = threads_ + 1] { serve(worker); }).detach();
      } catch (const std::system_error&) {
        // The system has no more threads to give: the ones there are do the work.
        workers = threads_ + 1;
      }
      task_ = &task;
      count_ = count;
      next_.store(0);
      workers_ = workers;
      busy_ = workers - 1;
      ++generation_;
    }
    start_.notify_all();
    work(task, 0);
    std::unique_lock<std::mutex> lock(mutex_);
    done_.wait(lock, [this] { return busy_ == 0; });
  }

 private:
  void work(const std::function<void(int64_t, int)>& task, int worker) {
    const DefaultFloatingPoint environment;
    for (int64_t index; (index = next_.fetch_add(1)) < count_;) task(index, worker);
  }

  void serve(int worker) {
    uint64_t seen = 0;
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      start_.wait(lock, [&] { return generation_ != seen && worker < workers_; });
      seen = generation_;
      const std::function<void(int64_t, int)>& task = *task_;
      lock.unlock();
      work(task, worker);
      lock.lock();
      if (--busy_ == 0) done_.notify_one();
    }
  }

  std::mutex mutex_;
  std::condition_variable start_, done_;
  const std::function<void(int64_t, int)>* task_ = nullptr;
  std::atomic<int64_t> next_{0};
  int64_t count_ = 0;
  int workers_ = 0, busy_ = 0, threads_ = 0;
  uint64_t generation_ = 0;
};

// Never destroyed: its threads sleep on it until the process ends.
std::atomic<Pool*> pool{nullptr};

// The child of a fork has none of the threads, and maybe a locked mutex: it leaves the old pool behind.
void forget_pool() { pool.store(new Pool); }

Pool& the_pool() {
  static std::once_flag once;
  std::call_once(once, [] {
    pool.store(new Pool);
    pthread_atfork(nullptr, nullptr, forget_pool);
  });
  return *pool.load();
}

}  // namespace

void parallel_for(int64_t count, int workers, const std::function<void(int64_t, int)>& task) {
  if (workers > 1) {
    Pool& shared = the_pool();
    std::unique_lock<std::mutex> mine(shared.in_use, std::try_to_lock);
    if (mine.owns_lock()) return shared.run(count, workers, task);
  }
  const DefaultFloatingPoint environment;
  for (int64_t index = 0; index < count; ++index) task(index, 0);
}

}  // namespace spectral_fast
