#include "threads.h"

#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <condition_variable>
#include <cstdio>
#include <cstring>
#include <system_error>
#include <thread>
#include <vector>

#include "openmp.h"

namespace spectral_fast {
namespace {

typedef std::chrono::steady_clock Clock;

// A kernel calls run() hundreds of times with some 10 us of its own work between. A thread that sleeps takes 50 us to wake, one
// that spins 0.2 us; so threads spin across such gaps. They then offer their core to others, for as long as a piece may take,
// and then sleep.
constexpr std::chrono::microseconds spin_time{50};
constexpr std::chrono::microseconds yield_time{250};
constexpr std::chrono::milliseconds poll_interval{50};

inline void pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ __volatile__("isb");
#endif
}

int available_cpus() {
  cpu_set_t cpus;
  return sched_getaffinity(0, sizeof cpus, &cpus) == 0 ? CPU_COUNT(&cpus) : static_cast<int>(std::thread::hardware_concurrency());
}

// Waits for ready() without sleeping; false when it took too long. Where threads outnumber the cores, a thread that spins keeps
// the one it waits for from running: it yields at once.
template <typename Ready>
bool wait_awake(bool crowded, const Ready& ready) {
  const Clock::time_point start = Clock::now();
  for (;;) {
    for (int i = 0; i < 16; ++i) {
      if (ready()) return true;
      pause();
    }
    const Clock::duration waited = Clock::now() - start;
    if (waited > spin_time + yield_time) return false;
    if (crowded || waited > spin_time) sched_yield();
  }
}

}  // namespace

// A job is open while pieces of it are left to claim. Its end waits for pieces, not for threads: a thread that is late, or
// asleep, or that the system has not let run, holds nobody up.
class Pool {
 public:
  typedef void (*Piece)(void* context, int64_t index, int worker);

  virtual ~Pool() = default;

  // Gathers threads for a call. Returns how many workers there are, the caller among them.
  virtual int begin(int workers) = 0;
  virtual void end() = 0;

  template <typename Poll>
  void run(int64_t count, int workers, Piece piece, void* context, const Poll& poll) {
    workers = static_cast<int>(std::min<int64_t>(workers, count));
    piece_ = piece;
    context_ = context;
    count_ = count;
    unfinished_.store(count, std::memory_order_relaxed);
    open_.store(static_cast<uint64_t>(workers) << worker_shift | static_cast<uint64_t>(count));
    for (int i = 0; i < workers - 1; ++i) sleepers_[i]->wake();

    work(0);
    const auto finished = [this] { return unfinished_.load() == 0; };
    while (!wait_awake(crowded_.load(std::memory_order_relaxed), finished) && !caller_.sleep_for(poll_interval, finished)) poll();
  }

 protected:
  // Where one thread sleeps. Whoever makes ready() true calls wake() afterwards. Both sides write first and then read what the
  // other wrote, in the one order of sequentially consistent operations, so one of them sees the other.
  class Sleeper {
   public:
    template <typename Ready>
    bool sleep_for(std::chrono::milliseconds time, const Ready& ready) {
      return sleep([&](std::unique_lock<std::mutex>& lock) { return wake_.wait_for(lock, time, ready); });
    }

    template <typename Ready>
    void sleep_until(const Ready& ready) {
      sleep([&](std::unique_lock<std::mutex>& lock) { return wake_.wait(lock, ready), true; });
    }

    void wake() {
      if (!asleep_.load()) return;
      std::lock_guard<std::mutex> lock(mutex_);
      wake_.notify_one();
    }

   private:
    template <typename Wait>
    bool sleep(const Wait& wait) {
      std::unique_lock<std::mutex> lock(mutex_);
      asleep_.store(true);
      const bool ready = wait(lock);
      asleep_.store(false);
      return ready;
    }

    std::mutex mutex_;
    std::condition_variable wake_;
    std::atomic<bool> asleep_{false};
  };

  // Works on jobs as they come, until the pool is closed.
  void serve(Sleeper& self, int worker) {
    const DefaultFloatingPoint environment;
    const auto ready = [this, worker] { return closed_.load() || claimable(open_.load(), worker); };
    for (;;) {
      if (!wait_awake(crowded_.load(std::memory_order_relaxed), ready)) self.sleep_until(ready);
      if (closed_.load()) return;
      work(worker);
    }
  }

  static constexpr int most_workers = 0xffff;

  std::vector<std::unique_ptr<Sleeper>> sleepers_;  // of worker 1, 2, ...
  std::atomic<bool> closed_{false};
  std::atomic<bool> crowded_{false};

 private:
  static constexpr int worker_shift = 48;
  static constexpr uint64_t left_mask = (uint64_t{1} << worker_shift) - 1;

  static bool claimable(uint64_t open, int worker) {
    return (open & left_mask) != 0 && static_cast<uint64_t>(worker) < open >> worker_shift;
  }

  void work(int worker) {
    int64_t done = 0;
    uint64_t open = open_.load(std::memory_order_acquire);
    while (claimable(open, worker)) {
      // All that decides about a claim is in this one word, so one that succeeds belongs to the job that is open now, however
      // long ago the word was read. The job stays as it is until the piece is done.
      if (!open_.compare_exchange_weak(open, open - 1, std::memory_order_acquire)) continue;
      piece_(context_, count_ - static_cast<int64_t>(open & left_mask), worker);
      ++done;
      open = open_.load(std::memory_order_acquire);
    }
    if (done && unfinished_.fetch_sub(done) == done && worker != 0) caller_.wake();
  }

  alignas(64) std::atomic<uint64_t> open_{0};  // workers << worker_shift | pieces left to claim
  alignas(64) std::atomic<int64_t> unfinished_{0};
  alignas(64) Piece piece_ = nullptr;
  void* context_ = nullptr;
  int64_t count_ = 0;
  Sleeper caller_;
};

namespace {

class OwnThreads : public Pool {
 public:
  int begin(int workers) override {
    workers = std::min(workers, most_workers);
    try {
      while (static_cast<int>(sleepers_.size()) < workers - 1) {
        sleepers_.push_back(std::make_unique<Sleeper>());
        std::thread([this, self = sleepers_.back().get(), worker = static_cast<int>(sleepers_.size())] {
          serve(*self, worker);
        }).detach();
      }
    } catch (const std::system_error&) {
      // The system has no more threads to give: the ones there are do the work.
      sleepers_.pop_back();
      workers = static_cast<int>(sleepers_.size()) + 1;
    }
    crowded_.store(workers > available_cpus(), std::memory_order_relaxed);
    return workers;
  }

  void end() override {}
};

class BorrowedThreads : public Pool {
 public:
  // Whether to borrow them now, for the thread to which `openmp` is available. A team that sleeps is left alone: its members may
  // wake on the caller's core, and the runtime spins for them there (5 ms were seen for a call of 0.3). A caller that is bound to
  // fewer cores than the runtime has no better choice, for threads of its own would be bound to them, too.
  bool awake(const OpenMP* openmp) {
    openmp_ = openmp;
    return available_cpus() < openmp->processors() || runs(watched_.load());
  }

  int begin(int workers) override {
    workers_ = std::min(workers, most_workers);
    while (static_cast<int>(sleepers_.size()) < workers_ - 1) sleepers_.push_back(std::make_unique<Sleeper>());
    entered_.store(1);
    closed_.store(false);
    openmp_->start([](void* pool) { static_cast<BorrowedThreads*>(pool)->member(); }, this, 0, 0);
    team_ = openmp_->threads();
    workers = std::min(workers_, team_);
    crowded_.store(workers > openmp_->processors(), std::memory_order_relaxed);
    return workers;
  }

  void end() override {
    closed_.store(true);
    for (const auto& sleeper : sleepers_) sleeper->wake();
    // The runtime would spin for members that are still waiting for this very core: 5 ms where they had slept.
    while (entered_.load() < team_) sched_yield();
    openmp_->end();
  }

 private:
  void member() {
    ++entered_;
    if (closed_.load()) return;  // what begin() wrote before it opened the pool is seen now
    const int worker = openmp_->member();
    if (worker == 1) watched_.store(static_cast<pid_t>(syscall(SYS_gettid)));
    if (worker > 0 && worker < workers_) serve(*sleepers_[worker - 1], worker);
  }

  // A thread that is not known, or not any more, counts as awake: then it gets known.
  static bool runs(pid_t thread) {
    char text[128] = {};
    std::snprintf(text, sizeof text, "/proc/self/task/%d/stat", static_cast<int>(thread));
    const int file = open(text, O_RDONLY | O_CLOEXEC);
    if (file < 0) return true;
    const ssize_t length = read(file, text, sizeof text - 1);
    close(file);
    text[std::max<ssize_t>(length, 0)] = 0;
    const char* const name_ends = std::strrchr(text, ')');  // tid (name) state
    return !name_ends || std::strncmp(name_ends, ") R", 3) == 0;
  }

  const OpenMP* openmp_ = nullptr;
  std::atomic<pid_t> watched_{0};  // member 1
  int workers_ = 1, team_ = 1;
  std::atomic<int> entered_{1};
};

}  // namespace

struct Pools {
  std::mutex in_use;  // for the length of a call
  OwnThreads own;
  BorrowedThreads borrowed;
};

namespace {

// Never destroyed: threads sleep on it until the process ends.
std::atomic<Pools*> pools{nullptr};

// The child of a fork has none of the threads, and maybe a locked mutex: it leaves the old pools behind.
void forget_pools() { pools.store(new Pools); }

Pools& the_pools() {
  static std::once_flag once;
  std::call_once(once, [] {
    pools.store(new Pools);
    pthread_atfork(nullptr, nullptr, forget_pools);
  });
  return *pools.load();
}

}  // namespace

Crew::Crew(int threads, bool (*interrupted)()) : interrupted_(interrupted), next_poll_(Clock::now() + poll_interval) {
  if (threads < 2) return;
  Pools& shared = the_pools();
  taken_ = std::unique_lock<std::mutex>(shared.in_use, std::try_to_lock);
  if (!taken_) return;
  const OpenMP* const openmp = OpenMP::available();
  if (openmp && shared.borrowed.awake(openmp))
    pool_ = &shared.borrowed;
  else
    pool_ = &shared.own;
  threads_ = pool_->begin(threads);
}

Crew::~Crew() {
  if (pool_) pool_->end();
}

bool Crew::poll() {
  if (cancelled()) return true;
  if (!interrupted_ || Clock::now() < next_poll_) return false;
  if (interrupted_()) cancelled_.store(true, std::memory_order_relaxed);
  next_poll_ = Clock::now() + poll_interval;
  return cancelled();
}

void Crew::run(int64_t count, void (*piece)(void* context, int64_t index, int worker), void* context) {
  if (threads_ == 1 || count < 2) {
    for (int64_t index = 0; index < count; ++index) piece(context, index, 0);
  } else {
    pool_->run(count, threads_, piece, context, [this] { poll(); });
  }
}

Team Crew::together() {
  return Team{threads_, this,
              [](void* crew, int64_t count, void (*piece)(void* context, int64_t index), void* context) {
                static_cast<Crew*>(crew)->run(count, [=](int64_t index, int) { piece(context, index); });
              },
              [](void* crew) { return static_cast<Crew*>(crew)->poll(); }};
}

Team Crew::alone(int worker) {
  Team team = together();
  team.threads = 1;
  if (worker != 0) team.cancelled = [](void* crew) { return static_cast<const Crew*>(crew)->cancelled(); };
  return team;
}

}  // namespace spectral_fast
