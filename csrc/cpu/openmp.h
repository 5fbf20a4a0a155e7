// The threads of the OpenMP runtime that torch computes with, borrowed for a call.
//
// They spin for milliseconds after each operation of torch's: beside them threads of our own would find the cores taken. Where
// OpenMP binds threads to cores (OMP_PROC_BIND) our own would all be on that of their creator.
//
// Nothing is linked, for there are several such runtimes (GNU's, LLVM's, Intel's): the one in the process is found by the entry
// points of GNU's ABI, which all of them have.
#pragma once

namespace spectral_fast {

struct OpenMP {
  // Calls member(context) on all threads of a new team but the caller's own, and returns at once; end() waits for all of them.
  // The team is as large as those of torch's operations: GNU's runtime ends threads that a smaller one leaves out.
  void (*start)(void (*member)(void* context), void* context, unsigned threads, unsigned flags);
  void (*end)();
  int (*in_parallel)();
  int (*threads)();     // of the team
  int (*member)();      // 0: the caller of start
  int (*processors)();  // that the runtime may use; a bound thread sees its own alone

  // Null where there is none, and where its team is not to be had: inside of a parallel region, in the child of a fork, which
  // has none of the threads that the runtime counts on, and on all threads but the process's first. Each of the others would be
  // given a team of its own, which stays.
  static const OpenMP* available();
};

}  // namespace spectral_fast
