// A switch between stacks, and stacks to switch to: every emulated thread has one.
#pragma once

#include <cstddef>

namespace fastdl::emulator {

// Saves the running stack's pointer in *from and goes on where `to` was saved.
extern "C" void fastdl_emulator_switch(void** from, void* to);

// Equally large stacks, each above a page that must not be touched. Kept for the next block.
class Stacks {
 public:
  static constexpr size_t kBytes = 64 * 1024;

  ~Stacks();
  void provide(int count);
  char* low(int i) const { return memory_ + i * kStride + kGuard; }
  // A stack pointer from which the switch enters `entry`, which must not return.
  void* start(int i, void (*entry)()) const;

 private:
  static constexpr size_t kGuard = 4096, kStride = kBytes + kGuard;
  static constexpr int kMost = 1024;
  char* memory_ = nullptr;
  int ready_ = 0;
};

}  // namespace fastdl::emulator
