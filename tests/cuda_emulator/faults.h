// What would end the process, or never end, ends the launch: a bad address, an integer divided by zero, a loop without end.
#pragma once

#include <signal.h>
#include <sys/time.h>

#include "scheduler.h"

namespace emulator {

inline void on_signal(int signal, siginfo_t*, void* context) {
  if (!block_state.running) {
    if (signal == SIGVTALRM) return;  // the next tick may find a thread
    abort();
  }
  unsigned long where = 0;
#ifdef __x86_64__
  where = offset(reinterpret_cast<void*>(static_cast<ucontext_t*>(context)->uc_mcontext.gregs[REG_RIP]));
#endif
  report("thread %d %s at pc %#lx", block_state.current,
         signal == SIGVTALRM ? "is not done after all the time it was given,"
         : signal == SIGFPE  ? "divides an integer by zero"
                             : "reads or writes a bad address",
         where + 1);  // as of a call: the instruction is before it
  abandon();
}

// While a launch runs. The handler leaves for the scheduler and never returns: no signal may stay blocked.
class Faults {
 public:
  explicit Faults(long long seconds) {
    struct sigaction action = {};
    action.sa_sigaction = on_signal;
    action.sa_flags = SA_SIGINFO | SA_NODEFER;
    for (int i = 0; i < count; ++i) sigaction(signals[i], &action, &before_[i]);
    const itimerval limit = {{1, 0}, {seconds, 0}};  // of this process's own time
    setitimer(ITIMER_VIRTUAL, &limit, &timer_before_);
  }
  ~Faults() {
    setitimer(ITIMER_VIRTUAL, &timer_before_, nullptr);
    for (int i = 0; i < count; ++i) sigaction(signals[i], &before_[i], nullptr);
  }

 private:
#ifdef __SANITIZE_ADDRESS__
  static constexpr int signals[] = {SIGVTALRM};  // AddressSanitizer says more of the others
#else
  static constexpr int signals[] = {SIGVTALRM, SIGFPE, SIGSEGV, SIGBUS};
#endif
  static constexpr int count = sizeof(signals) / sizeof(int);
  struct sigaction before_[count];
  itimerval timer_before_;
};

}  // namespace emulator
