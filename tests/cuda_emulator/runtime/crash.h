// Says which emulated thread it was when the process is about to end with a segmentation fault:
// mostly one that has overflown its stack.
#pragma once

#include <signal.h>

#include <memory>

namespace fastdl::emulator {

// While a kernel runs
class CrashNotes {
 public:
  CrashNotes();
  ~CrashNotes();
  CrashNotes(const CrashNotes&) = delete;
  CrashNotes& operator=(const CrashNotes&) = delete;
};

// A host thread's stack for the handler, as the one that it runs on may have no room left
class HandlerStack {
 public:
  HandlerStack();
  ~HandlerStack();
  HandlerStack(const HandlerStack&) = delete;
  HandlerStack& operator=(const HandlerStack&) = delete;

 private:
  std::unique_ptr<char[]> memory_;
  stack_t before_;
};

}  // namespace fastdl::emulator
