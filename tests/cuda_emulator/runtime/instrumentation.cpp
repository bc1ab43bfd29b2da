// What the compiler has kernels call before every access to memory (-fsanitize=thread) and at every
// misaligned one (-fsanitize=alignment). Their libraries are not linked: these are the functions.
#include "instrumentation.h"

#include <cstring>
#include <string>

#include "block.h"
#include "device_memory.h"
#include "memory_map.h"

namespace fastdl::emulator {
namespace {

// The block of the cluster to whose shared memory the address belongs, or nullptr
Block* other_block(uintptr_t address) {
  Cluster& cluster = current.block->cluster();
  for (int rank = 0; rank < cluster.size(); ++rank) {
    if (cluster.member(rank).shadow().contains(address)) return &cluster.member(rank);
  }
  return nullptr;
}

std::string access_text(bool write, size_t bytes) {
  return (write ? "writes " : "reads ") + std::to_string(bytes) + " bytes ";
}

// Neither this block's shared memory, nor an allocation, nor the thread's own variables
[[gnu::noinline]] void access_elsewhere(uintptr_t address, size_t bytes, bool write, bool atomic,
                                        const void* pc) {
  Outside outside;
  Block& block = *current.block;
  const Launch& launch = block.launch();
  const auto arguments = reinterpret_cast<uintptr_t>(launch.arguments);
  if (!write && address - arguments < launch.arguments_bytes) return;
  if (Block* owner = other_block(address)) {
    return owner->access_by_other(address, bytes, {write, atomic, pc});
  }
  const DeviceMemory& memory = DeviceMemory::instance();
  if (memory.contains(address)) {
    const Kind kind = memory.was_freed(address) ? Kind::kUseAfterFree : Kind::kOutOfBounds;
    block.report({kind, pc, access_text(write, bytes) + memory.describe(address), {}});
    block.stop();
  }
  if (launch.host_memory && address >= 4096) return;
  if (!write && is_constant(address)) return;
  block.report({Kind::kHostMemory,
                pc,
                access_text(write, bytes) + (address < 4096 ? "at a null pointer" : "of the host"),
                {}});
  block.stop();
}

// The running thread, if there is one, even while the emulator works for it
bool is_watched() { return current.thread && current.block->launch().watched; }

inline void access(uintptr_t address, size_t bytes, bool write, bool atomic, const void* pc) {
  if (current.mode != Mode::kWatched) return;
  if (address - current.stack < Stacks::kBytes) return;
  ++current.accesses;
  SharedShadow& shadow = current.block->shadow();
  if (shadow.contains(address)) return shadow.access(address, bytes, {write, atomic, pc});
  const DeviceMemory& memory = *current.memory;
  if (memory.contains(address) && memory.valid(address, bytes)) return;
  access_elsewhere(address, bytes, write, atomic, pc);
}

inline void access(const volatile void* address, size_t bytes, bool write, bool atomic,
                   const void* pc) {
  access(reinterpret_cast<uintptr_t>(address), bytes, write, atomic, pc);
}

inline void count_atomic(const void* pc) {
  if (current.mode != Mode::kOutside) current.block->count_atomic(pc);
}

}  // namespace

void check_alignment(uintptr_t address, size_t alignment, const void* pc, const char* file,
                     int line) {
  if (address % alignment == 0 || !is_watched()) return;
  Outside outside;
  current.block->report({Kind::kMisaligned,
                         pc,
                         "an address that is not a multiple of " + std::to_string(alignment),
                         {},
                         file,
                         line});
  current.block->stop();
}

void check_global_read(uintptr_t address, size_t bytes, const void* pc) {
  if (!is_watched()) return;
  const DeviceMemory& memory = *current.memory;
  if (memory.contains(address) && memory.valid(address, bytes)) return;
  access_elsewhere(address, bytes, false, false, pc);
}

void check_shared_row(uintptr_t address, size_t bytes, const void* pc) {
  if (!is_watched()) return;
  if (!current.block->shadow().contains(address)) {
    current.block->report({Kind::kOutOfBounds, pc, "an address that is not in shared memory", {}});
    current.block->stop();
  }
  current.block->shadow().access(address, bytes, {false, false, pc});
}

void begin_shared_copy(uintptr_t address, const void* pc) {
  if (!is_watched()) return;
  if (!current.block->shadow().contains(address)) {
    current.block->report({Kind::kOutOfBounds, pc, "an address that is not in shared memory", {}});
    current.block->stop();
  }
  current.block->shadow().begin_copy(address, pc);
}

void land_shared_copy(uintptr_t address, const void* pc) {
  if (is_watched()) current.block->shadow().land_copy(address, pc);
}

}  // namespace fastdl::emulator

// NOLINTBEGIN: names are the compiler's

using fastdl::emulator::access;
using fastdl::emulator::count_atomic;

#define CALLER __builtin_return_address(0)
#define PLAIN(bytes)                                                                             \
  void __tsan_read##bytes(void* a) { access(a, bytes, false, false, CALLER); }                   \
  void __tsan_write##bytes(void* a) { access(a, bytes, true, false, CALLER); }                   \
  void __tsan_unaligned_read##bytes(void* a) { access(a, bytes, false, false, CALLER); }         \
  void __tsan_unaligned_write##bytes(void* a) { access(a, bytes, true, false, CALLER); }         \
  void __tsan_volatile_read##bytes(void* a) {                                                    \
    access(a, bytes, false, true, CALLER);                                                       \
    count_atomic(CALLER);                                                                        \
  }                                                                                              \
  void __tsan_volatile_write##bytes(void* a) { access(a, bytes, true, true, CALLER); }           \
  void __tsan_unaligned_volatile_read##bytes(void* a) { access(a, bytes, false, true, CALLER); } \
  void __tsan_unaligned_volatile_write##bytes(void* a) { access(a, bytes, true, true, CALLER); }

#define UPDATE(bits, T, name)                                   \
  T __tsan_atomic##bits##_##name(volatile T* a, T value, int) { \
    access(a, bits / 8, true, true, CALLER);                    \
    count_atomic(CALLER);                                       \
    return __atomic_##name(a, value, __ATOMIC_SEQ_CST);         \
  }
#define EXCHANGE(bits, T, strength)                                                               \
  int __tsan_atomic##bits##_compare_exchange_##strength(volatile T* a, T* expected, T value, int, \
                                                        int) {                                    \
    access(a, bits / 8, true, true, CALLER);                                                      \
    count_atomic(CALLER);                                                                         \
    return __atomic_compare_exchange_n(a, expected, value, false, __ATOMIC_SEQ_CST,               \
                                       __ATOMIC_SEQ_CST);                                         \
  }
#define ATOMIC(bits, T)                                           \
  T __tsan_atomic##bits##_load(const volatile T* a, int) {        \
    access(a, bits / 8, false, true, CALLER);                     \
    count_atomic(CALLER);                                         \
    return __atomic_load_n(a, __ATOMIC_SEQ_CST);                  \
  }                                                               \
  void __tsan_atomic##bits##_store(volatile T* a, T value, int) { \
    access(a, bits / 8, true, true, CALLER);                      \
    __atomic_store_n(a, value, __ATOMIC_SEQ_CST);                 \
  }                                                               \
  T __tsan_atomic##bits##_exchange(volatile T* a, T value, int) { \
    access(a, bits / 8, true, true, CALLER);                      \
    count_atomic(CALLER);                                         \
    return __atomic_exchange_n(a, value, __ATOMIC_SEQ_CST);       \
  }                                                               \
  UPDATE(bits, T, fetch_add)                                      \
  UPDATE(bits, T, fetch_sub)                                      \
  UPDATE(bits, T, fetch_and)                                      \
  UPDATE(bits, T, fetch_or)                                       \
  UPDATE(bits, T, fetch_xor)                                      \
  EXCHANGE(bits, T, strong)                                       \
  EXCHANGE(bits, T, weak)

extern "C" {

void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_read(void**) {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_atomic_thread_fence(int) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
void __tsan_atomic_signal_fence(int) { __atomic_signal_fence(__ATOMIC_SEQ_CST); }
void __tsan_read_range(void* a, unsigned long bytes) { access(a, bytes, false, false, CALLER); }
void __tsan_write_range(void* a, unsigned long bytes) { access(a, bytes, true, false, CALLER); }

PLAIN(1)
PLAIN(2)
PLAIN(4)
PLAIN(8)
PLAIN(16)
ATOMIC(8, uint8_t)
ATOMIC(16, uint16_t)
ATOMIC(32, uint32_t)
ATOMIC(64, uint64_t)

void* __tsan_memcpy(void* to, const void* from, size_t bytes) {
  access(from, bytes, false, false, CALLER);
  access(to, bytes, true, false, CALLER);
  return std::memcpy(to, from, bytes);
}

void* __tsan_memmove(void* to, const void* from, size_t bytes) {
  access(from, bytes, false, false, CALLER);
  access(to, bytes, true, false, CALLER);
  return std::memmove(to, from, bytes);
}

void* __tsan_memset(void* to, int value, size_t bytes) {
  access(to, bytes, true, false, CALLER);
  return std::memset(to, value, bytes);
}

struct MismatchedType {
  const char* file;
  uint32_t line, column;
  const void* type;
  unsigned char log_alignment, kind;
};

void __ubsan_handle_type_mismatch_v1(MismatchedType* data, uintptr_t address) {
  const size_t alignment = size_t{1} << data->log_alignment;
  fastdl::emulator::check_alignment(address, alignment, CALLER, data->file,
                                    static_cast<int>(data->line));
}

void __ubsan_handle_type_mismatch_v1_abort(MismatchedType* data, uintptr_t address) {
  __ubsan_handle_type_mismatch_v1(data, address);
}

}  // extern "C"

// NOLINTEND
