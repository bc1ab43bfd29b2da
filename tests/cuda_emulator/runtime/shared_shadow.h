// What happened to each 4 bytes of a block's shared memory: whether they were written in this
// block, and the last accesses, to find two that nothing orders.
#pragma once

#include <cstddef>
#include <cstdint>

#include "reports.h"

namespace fastdl::emulator {

struct SharedAccess {
  bool write, atomic;
  const void* pc;
};

class SharedShadow {
 public:
  SharedShadow();  // of this host thread's shared memory
  ~SharedShadow();

  void begin_block(size_t dynamic_shared);
  bool contains(uintptr_t address) const { return address - low_ < bytes_; }
  uintptr_t low() const { return low_; }

  // By the running thread, which may be one of another block of the cluster.
  void access(uintptr_t address, size_t bytes, const SharedAccess& access);
  // An asynchronous copy to 16 bytes begins, lands.
  void begin_copy(uintptr_t address, const void* pc);
  void land_copy(uintptr_t address, const void* pc);

 private:
  struct Cell;

  Cell& cell_at(uintptr_t address);
  bool within_launch(uintptr_t address, size_t bytes, const SharedAccess& access);
  void check_order(const Cell& cell, uint32_t mask, uintptr_t address, const SharedAccess& access);
  static void remember_write(Cell& cell, uint32_t mask, uint32_t code, const void* pc);
  static void remember_read(Cell& cell, uint32_t code, const void* pc);
  void write_all(Cell& cell, uintptr_t address, const SharedAccess& access);
  void report_bytes(Kind kind, const char* what, uintptr_t address, const SharedAccess& access,
                    const Whom& other = {});

  uintptr_t low_ = 0, dynamic_ = 0;
  size_t bytes_ = 0, dynamic_bytes_ = 0;
  Cell* cells_ = nullptr;
  uint32_t generation_ = 0;  // counts blocks: what is of an earlier one is nothing
};

}  // namespace fastdl::emulator
