// Fibers: a stack each, switched by hand in a few instructions.
#pragma once

#include <cstddef>
#include <cstdint>

#ifndef __x86_64__
#include <ucontext.h>
#endif
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace emulator {

struct Fiber {
  const void* bottom;  // of the stack
  size_t bytes;
#ifdef __x86_64__
  void* registers[3];  // stack pointer, frame pointer, where it goes on
#else
  ucontext_t context;
#endif
};

#ifdef __x86_64__

// As if it had been switched away from on the first instruction of `entry`, called by nobody.
inline void prepare(Fiber& fiber, void (*entry)()) {
  const auto top = (reinterpret_cast<uintptr_t>(fiber.bottom) + fiber.bytes) & ~uintptr_t{15};
  fiber.registers[0] = reinterpret_cast<void*>(top - 8);
  fiber.registers[1] = nullptr;
  fiber.registers[2] = reinterpret_cast<void*>(entry);
}

// Inline, and a jump where a call would return: returns stay in step with calls, as the processor expects them to. The compiler
// keeps what it needs of the registers named; the stack and the frame pointer it cannot give away.
__attribute__((always_inline)) inline void switch_stack(Fiber& from, const Fiber& to) {
  void** save = from.registers;
  void* const* load = to.registers;
  asm volatile(
      "leaq 1f(%%rip), %%rax\n\t"
      "movq %%rsp, 0(%0)\n\t"
      "movq %%rbp, 8(%0)\n\t"
      "movq %%rax, 16(%0)\n\t"
      "movq 0(%1), %%rsp\n\t"
      "movq 8(%1), %%rbp\n\t"
      "jmp *16(%1)\n"
      "1:"
      : "+D"(save), "+S"(load)
      :
      : "rax", "rbx", "rcx", "rdx", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4",
        "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15", "memory", "cc");
}

#else

// The signal mask is saved too, with a system call: slower, but anywhere.
inline void prepare(Fiber& fiber, void (*entry)()) {
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = const_cast<void*>(fiber.bottom);
  fiber.context.uc_stack.ss_size = fiber.bytes;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, entry, 0);
}

inline void switch_stack(Fiber& from, const Fiber& to) { swapcontext(&from.context, &to.context); }

#endif

// AddressSanitizer has to be told whose stack it is on.
__attribute__((always_inline)) inline void switch_fiber(Fiber& from, const Fiber& to) {
#ifdef __SANITIZE_ADDRESS__
  void* fake = nullptr;
  __sanitizer_start_switch_fiber(&fake, to.bottom, to.bytes);
  switch_stack(from, to);
  __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#else
  switch_stack(from, to);
#endif
}

// The first thing a fiber does: `from` is who switched to it.
inline void enter_fiber([[maybe_unused]] Fiber& from) {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(nullptr, &from.bottom, &from.bytes);
#endif
}

}  // namespace emulator
