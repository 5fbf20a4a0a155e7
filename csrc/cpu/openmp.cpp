#include "openmp.h"

#include <dlfcn.h>
#include <pthread.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <mutex>

namespace spectral_fast {
namespace {

std::atomic<const OpenMP*> runtime{nullptr};

void forget_runtime() { runtime.store(nullptr); }

template <typename Function>
bool find(void* library, const char* name, Function*& function) {
  function = reinterpret_cast<Function*>(dlsym(library, name));
  return function != nullptr;
}

// Everything from the library that the process's own calls of GOMP_parallel_start would go to.
bool load(OpenMP& found) {
  Dl_info where{};
  void* const start = dlsym(RTLD_DEFAULT, "GOMP_parallel_start");
  if (!start || !dladdr(start, &where)) return false;
  void* const library = dlopen(where.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
  return library && find(library, "GOMP_parallel_start", found.start) && find(library, "GOMP_parallel_end", found.end) &&
         find(library, "omp_in_parallel", found.in_parallel) && find(library, "omp_get_num_threads", found.threads) &&
         find(library, "omp_get_thread_num", found.member) && find(library, "omp_get_num_procs", found.processors);
}

}  // namespace

const OpenMP* OpenMP::available() {
  static OpenMP found{};
  static std::once_flag once;
  std::call_once(once, [] {
    if (!load(found)) return;
    runtime.store(&found);
    pthread_atfork(nullptr, nullptr, forget_runtime);
  });
  const OpenMP* const openmp = runtime.load();
  return openmp && getpid() == syscall(SYS_gettid) && !openmp->in_parallel() ? openmp : nullptr;
}

}  // namespace spectral_fast
