// Work shared by the threads of a team (kernels.h). Pieces are numbered and independent: what a piece computes may depend on its
// number, never on the thread that runs it or on the number of threads.

template <typename Piece>
static void run_piece(void* context, int64_t index) {
  (*static_cast<Piece*>(context))(index);
}

template <typename Piece>
static inline void parallel_for(const Team& team, int64_t count, Piece piece) {
  if (team.threads == 1 || count == 1) {
    for (int64_t i = 0; i < count; ++i) piece(i);
  } else {
    team.run(team.pool, count, run_piece<Piece>, &piece);
  }
}

static inline bool cancelled(const Team& team) { return team.cancelled && team.cancelled(team.pool); }

static inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

// Waits inside a piece for an earlier piece to come as far as `progress` (release by the one, acquire by the other).
static inline void wait_until(const int64_t* done, int64_t progress) {
  for (int spins = 0; __atomic_load_n(done, __ATOMIC_ACQUIRE) < progress; ++spins) {
    relax();
    if (spins >= 200) sched_yield();  // the other thread may be waiting for this core
  }
}
