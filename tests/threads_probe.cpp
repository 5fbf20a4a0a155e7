// What csrc/cpu/threads.h promises, without Python around it. tests/test_build.py compiles and runs this with TSan as well, and
// with OpenMP, whose threads then are those of the calls.
#include "csrc/cpu/threads.h"

#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cfenv>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

#ifdef _OPENMP
#include <omp.h>

#include "csrc/cpu/openmp.h"
#endif

using namespace spectral_fast;

#define CHECK(condition) \
  if (!(condition)) std::fprintf(stderr, "line %d: %s\n", __LINE__, #condition), std::_Exit(1)

static void wait_us(int time) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::microseconds(time);
  while (std::chrono::steady_clock::now() < end) {
  }
}

// Every piece runs once, those of one thread in ascending order. piece_us and gap_us reach threads that spin, yield and sleep.
static void all_pieces(int threads, int jobs, int64_t count, int piece_us, int gap_us) {
  Crew crew(threads, nullptr);
  CHECK(crew.threads() <= threads);
  std::vector<int> runs(count);
  std::vector<int64_t> last(crew.threads());
  for (int job = 1; job <= jobs; ++job) {
    last.assign(crew.threads(), -1);
    crew.run(count, [&](int64_t index, int worker) {
      CHECK(0 <= worker && worker < crew.threads());
      CHECK(last[worker] < index);
      last[worker] = index;
      ++runs[index];
      wait_us(piece_us);
    });
    for (int64_t i = 0; i < count; ++i) CHECK(runs[i] == job);
    wait_us(gap_us);
  }
}

// Two pieces that wait for each other, which no one thread could run. Then the calling thread falls asleep over the other's
// piece, and is woken.
static void two_at_once() {
  Crew crew(2, nullptr);
  CHECK(crew.threads() == 2);
  auto best = std::chrono::steady_clock::duration::max();
  for (int i = 0; i < 5; ++i) {
    std::atomic<int> started{0};
    const auto start = std::chrono::steady_clock::now();
    crew.run(2, [&started](int64_t, int worker) {
      ++started;
      for (int time = 0; started.load() < 2; time += 100) {
        CHECK(time < 20'000'000);
        wait_us(100);
      }
      if (worker != 0) wait_us(2000);
    });
    best = std::min(best, std::chrono::steady_clock::now() - start);
  }
  CHECK(best < std::chrono::milliseconds(40));  // where nobody wakes it, it looks every 50 ms
}

// Piece i waits for piece i - 1.
static void a_chain_of_pieces(int threads) {
  Crew crew(threads, nullptr);
  for (int job = 0; job < 20; ++job) {
    std::atomic<int64_t> done{0};
    const Team team = crew.together();
    CHECK(team.threads == crew.threads());
    team.run(
        team.pool, 20,
        [](void* context, int64_t index) {
          auto& before = *static_cast<std::atomic<int64_t>*>(context);
          while (before.load(std::memory_order_acquire) != index) std::this_thread::yield();
          before.store(index + 1, std::memory_order_release);
        },
        &done);
    CHECK(done.load() == 20);
  }
}

static void callers_at_once() {
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 4; ++caller)
    callers.emplace_back([] {
      for (int call = 0; call < 50; ++call) all_pieces(3, 3, 7, 2, 0);
    });
  for (std::thread& caller : callers) caller.join();
}

static void in_a_child() {
  const pid_t child = fork();
  CHECK(child >= 0);
  if (child == 0) {
#ifdef _OPENMP
    CHECK(!OpenMP::available());
#endif
#ifdef __SANITIZE_THREAD__
    all_pieces(1, 5, 20, 5, 0);  // TSan does not know threads that a child of several threads starts
#else
    two_at_once();
    all_pieces(3, 5, 20, 5, 0);
#endif
    std::_Exit(0);
  }
  int status = -1;
  CHECK(waitpid(child, &status, 0) == child && status == 0);
}

static void forks() {
  all_pieces(4, 1, 4, 0, 0);
  in_a_child();
  std::atomic<bool> stop{false};
  std::thread busy([&stop] {
    while (!stop.load()) all_pieces(2, 10, 8, 20, 0);
  });
  for (int i = 0; i < 5; ++i) in_a_child();
  stop.store(true);
  busy.join();
}

static void the_floating_point_environment() {
  std::fesetround(FE_TOWARDZERO);
  {
    Crew crew(3, nullptr);
    crew.run(30, [](int64_t, int) {
      CHECK(std::fegetround() == FE_TONEAREST);
      wait_us(10);
    });
  }
  CHECK(std::fegetround() == FE_TOWARDZERO);
  std::fesetround(FE_TONEAREST);
}

#ifdef _OPENMP
// A call's workers are the members of the program's own parallel regions, and are these again after the call.
static void the_team() {
  const int threads = omp_get_max_threads();
  const auto members = [threads] {
    std::vector<std::thread::id> found(threads);
#pragma omp parallel
    found[omp_get_thread_num()] = std::this_thread::get_id();
    return found;
  };
  const auto before = members();
  CHECK(OpenMP::available());
  for (int workers : {threads, 2, 3 * threads}) {
    Crew crew(workers, nullptr);
    CHECK(crew.threads() == std::min(workers, threads));
    CHECK(!OpenMP::available());
    crew.run(100, [&before](int64_t, int worker) {
      CHECK(std::this_thread::get_id() == before[worker]);
      wait_us(10);
    });
  }
  CHECK(members() == before);
  std::thread([] { CHECK(!OpenMP::available()); }).join();
}
#endif

static std::atomic<int> asked{0};

static void interruption(int threads) {
  asked.store(0);
  const auto start = std::chrono::steady_clock::now();
  {
    Crew crew(threads, [] { return ++asked == 2; });
    // A worker alone sees the answer that the calling thread got, which at the end only waits.
    crew.run(2, [&crew, threads](int64_t index, int worker) {
      const Team team = crew.alone(threads == 1 ? 0 : worker);
      CHECK(team.threads == 1);
      if (threads > 1 && worker == 0) return wait_us(1000);
      if (index == 0 || threads > 1)
        while (!team.cancelled(team.pool)) wait_us(100);
    });
    CHECK(crew.cancelled() == (asked.load() >= 2));
    while (!crew.poll()) wait_us(100);
  }
  const auto waited = std::chrono::steady_clock::now() - start;
  CHECK(asked.load() == 2);
  CHECK(waited >= std::chrono::milliseconds(100) && waited < std::chrono::seconds(5));
  CHECK(!Crew(threads, nullptr).poll());
}

int main() {
#ifdef _OPENMP
  the_team();
#endif
  the_floating_point_environment();
  two_at_once();
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  two_at_once();  // the threads are asleep
  for (int threads : {1, 2, 4, 8, 2}) {
    all_pieces(threads, 100, 1, 0, 0);
    all_pieces(threads, 300, 50, 0, 0);
    all_pieces(threads, 50, 9, 20, 10);
    all_pieces(threads, 5, 3, 1000, 1000);
    all_pieces(threads, 1, 0, 0, 0);
    a_chain_of_pieces(threads);
  }
  callers_at_once();
  interruption(1);
  interruption(2);
  forks();
}
