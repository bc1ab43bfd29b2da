#include "crash.h"

#include <cstdio>

#include "block.h"

namespace fastdl::emulator {
namespace {

struct sigaction action_before;

void note(int, siginfo_t* info, void*) {
  sigaction(SIGSEGV, &action_before, nullptr);  // what happens when the access is tried again
  if (!current.thread) return;
  const auto address = reinterpret_cast<uintptr_t>(info->si_addr);
  const uint3 block = current.block->index(), thread = current.thread->index;
  const bool overflow = current.stack - address <= 4096;
  std::fprintf(
      stderr,
      "CUDA emulator: block (%u, %u, %u), thread (%u, %u, %u): segmentation fault at %p%s\n",
      block.x, block.y, block.z, thread.x, thread.y, thread.z, info->si_addr,
      overflow ? ", more than 64 KiB of local variables" : "");
}

}  // namespace

CrashNotes::CrashNotes() {
  struct sigaction action = {};
  action.sa_sigaction = note;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  sigaction(SIGSEGV, &action, &action_before);
}

CrashNotes::~CrashNotes() { sigaction(SIGSEGV, &action_before, nullptr); }

HandlerStack::HandlerStack() {
  constexpr size_t kBytes = 64 * 1024;
  memory_ = std::make_unique<char[]>(kBytes);
  stack_t stack = {};
  stack.ss_sp = memory_.get();
  stack.ss_size = kBytes;
  sigaltstack(&stack, &before_);
}

HandlerStack::~HandlerStack() { sigaltstack(&before_, nullptr); }

}  // namespace fastdl::emulator
