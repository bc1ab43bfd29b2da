#include "fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>

#if !defined(__x86_64__)
#include <ucontext.h>

#include <new>
#endif

namespace fastdl::emulator {

Stacks::~Stacks() {
  if (memory_) munmap(memory_, kMost * kStride);
}

void Stacks::provide(int count) {
  if (!memory_) {
    void* mapped = mmap(nullptr, kMost * kStride, PROT_NONE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapped == MAP_FAILED) {
      std::perror("CUDA emulator: no memory for stacks");
      std::abort();
    }
    memory_ = static_cast<char*>(mapped);
  }
  for (; ready_ < count; ++ready_) {
    if (mprotect(low(ready_), kBytes, PROT_READ | PROT_WRITE) != 0) {
      std::perror("CUDA emulator: no memory for a stack");
      std::abort();
    }
  }
}

// Stacks of one size would put the frames of all threads into the same few sets of the caches.
static char* spread_top(char* low, int i) { return low + Stacks::kBytes - 64 - i * 7 % 32 * 128; }

#if defined(__x86_64__)

// Only what a called function must preserve; the switch is a call for both sides.
asm(R"(
.text
.globl fastdl_emulator_switch
.hidden fastdl_emulator_switch
.type fastdl_emulator_switch, @function
fastdl_emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size fastdl_emulator_switch, .-fastdl_emulator_switch
)");

void* Stacks::start(int i, void (*entry)()) const {
  auto* top = reinterpret_cast<uint64_t*>(spread_top(low(i), i));
  *--top = 0;  // where a caller's address would be; `entry` sees the alignment of a called function
  *--top = reinterpret_cast<uint64_t>(entry);
  for (int saved = 0; saved < 6; ++saved) *--top = 0;
  return top;
}

#else

// The stack pointer is that of a context that lies on the stack.
extern "C" void fastdl_emulator_switch(void** from, void* to) {
  ucontext_t here;
  *from = &here;
  swapcontext(&here, static_cast<ucontext_t*>(to));
}

void* Stacks::start(int i, void (*entry)()) const {
  char* top = spread_top(low(i), i) - sizeof(ucontext_t);
  auto* context =
      new (reinterpret_cast<void*>(reinterpret_cast<uintptr_t>(top) & ~uintptr_t{63})) ucontext_t;
  getcontext(context);
  context->uc_stack.ss_sp = low(i);
  context->uc_stack.ss_size = static_cast<size_t>(reinterpret_cast<char*>(context) - low(i));
  context->uc_link = nullptr;
  makecontext(context, entry, 0);
  return context;
}

#endif

}  // namespace fastdl::emulator
