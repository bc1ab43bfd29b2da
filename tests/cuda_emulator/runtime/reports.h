// Reports while a kernel runs: only numbers; names and lines are looked up after the launch.
#pragma once

#include <string>

#include "../emulator.h"
#include "launch.h"

namespace fastdl::emulator {

struct Thread;
class Block;

// A thread, remembered for a report
struct Whom {
  const void* pc = nullptr;   // nullptr: nobody
  int block = 0, thread = 0;  // of the cluster, of the block
};

struct Event {
  Kind kind;
  const void* pc;
  std::string what;            // happened, as a clause
  Whom other;                  // did the other thing
  const char* file = nullptr;  // if the compiler has told where
  int line = 0;
};

// By the thread that runs, or by the launch where none does.
void report(const Launch& launch, const Event& event);

// Looks up what was reported during `launch`, prints it. Whether there was something.
bool finish_reports(const Launch& launch);

}  // namespace fastdl::emulator
