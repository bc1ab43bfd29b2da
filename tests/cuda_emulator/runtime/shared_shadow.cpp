#include "shared_shadow.h"

#include <link.h>
#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <string>

#include "block.h"

namespace fastdl {

extern thread_local unsigned char dynamic_shared_bytes[emulator::kMostShared];

namespace emulator {
namespace {

constexpr int kSlots = 4;  // of a cell: 0, 1 for writes, 2, 3 for reads
constexpr uint32_t kWrite = 1 << 10, kAtomic = 1 << 11, kMaskShift = 12;
constexpr int kRankShift = Current::kRankShift;

// Return addresses, as 4 bytes
const char* const anchor = reinterpret_cast<const char*>(&block_barrier);
int32_t shortened(const void* pc) {
  return static_cast<int32_t>(static_cast<const char*>(pc) - anchor);
}

int find_tls(dl_phdr_info* module, size_t, void* found) {
  auto* range = static_cast<uintptr_t*>(found);
  const auto mine = reinterpret_cast<uintptr_t>(dynamic_shared_bytes);
  const auto low = reinterpret_cast<uintptr_t>(module->dlpi_tls_data);
  for (int i = 0; i < module->dlpi_phnum; ++i) {
    const auto& header = module->dlpi_phdr[i];
    if (header.p_type != PT_TLS || mine - low >= header.p_memsz) continue;
    range[0] = low;
    range[1] = header.p_memsz;
    return 1;
  }
  return 0;
}

}  // namespace

// One line of the host's cache
struct alignas(64) SharedShadow::Cell {
  uint32_t generation;
  uint8_t written, in_flight;  // masks of bytes
  uint16_t who[kSlots];        // thread, kWrite, kAtomic, mask of bytes; 0: nobody
  uint32_t barrier[kSlots];    // stamps
  uint32_t warp[kSlots];       // stamps, above them the rank of the block in the cluster
  int32_t pc[kSlots];

  bool is(int slot, uint32_t code, uint32_t barrier_now, uint32_t warp_now) const {
    return who[slot] == code && barrier[slot] == barrier_now && warp[slot] == warp_now;
  }
  // Who races with a read by this thread races with this write of its own, and has nothing else to.
  bool is_own_write(uint32_t thread, uint32_t bytes, uint32_t barrier_now,
                    uint32_t warp_now) const {
    return (who[0] & ((1u << kMaskShift) - 1)) == (thread | kWrite) && !(bytes & ~mask(0)) &&
           who[1] == 0 && barrier[0] == barrier_now && warp[0] == warp_now;
  }
  void set(int slot, uint32_t code, uint32_t barrier_now, uint32_t warp_now, int32_t place) {
    who[slot] = static_cast<uint16_t>(code);
    barrier[slot] = barrier_now;
    warp[slot] = warp_now;
    pc[slot] = place;
  }
  uint32_t mask(int slot) const { return who[slot] >> kMaskShift; }
  int thread(int slot) const { return who[slot] & 1023; }
};

SharedShadow::SharedShadow() {
  uintptr_t range[2] = {};
  if (!dl_iterate_phdr(find_tls, range)) {
    std::fputs("CUDA emulator: the shared memory was not found\n", stderr);
    std::abort();
  }
  low_ = range[0];
  bytes_ = range[1];
  dynamic_ = reinterpret_cast<uintptr_t>(dynamic_shared_bytes);
  void* cells = mmap(nullptr, (bytes_ / 4 + 1) * sizeof(Cell), PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (cells == MAP_FAILED) {
    std::perror("CUDA emulator: no memory to watch the shared memory");
    std::abort();
  }
  cells_ = static_cast<Cell*>(cells);
}

SharedShadow::~SharedShadow() { munmap(cells_, (bytes_ / 4 + 1) * sizeof(Cell)); }

void SharedShadow::begin_block(size_t dynamic_shared) {
  dynamic_bytes_ = dynamic_shared;
  ++generation_;
}

SharedShadow::Cell& SharedShadow::cell_at(uintptr_t address) {
  Cell& cell = cells_[(address - low_) / 4];
  if (cell.generation != generation_) {
    cell = {};
    cell.generation = generation_;
  }
  return cell;
}

void SharedShadow::report_bytes(Kind kind, const char* what, uintptr_t address,
                                const SharedAccess& access, const Whom& other) {
  Outside outside;
  const bool dynamic = address - dynamic_ < kMostShared;
  std::string text = access.atomic ? "changes" : access.write ? "writes" : "reads";
  text += dynamic ? " dynamic shared memory at byte " + std::to_string(address - dynamic_)
                  : " a __shared__ array";
  current.block->report({kind, access.pc, text + what, other});
}

bool SharedShadow::within_launch(uintptr_t address, size_t bytes, const SharedAccess& access) {
  const size_t offset = address - dynamic_;
  if (offset >= kMostShared || offset + bytes <= dynamic_bytes_) return true;
  report_bytes(Kind::kOutOfBounds, ", beyond what the launch has", address, access);
  return false;
}

// Whether this access came before everything that the running thread does now.
static bool came_before(int thread, uint32_t barrier, uint32_t ranked_warp) {
  const Thread& self = *current.thread;
  const int other_warp = thread / kWarp;
  if ((ranked_warp ^ current.rank_bits) >> kRankShift != 0) {  // of another block
    return barrier <= current.block->cluster().known(ranked_warp >> kRankShift)[other_warp];
  }
  if (thread == self.number) return true;
  const WarpClocks& clocks = *current.clocks;
  if (barrier <= clocks.known[other_warp]) return true;
  return other_warp == self.warp &&
         clocks.knows(self.lane, thread % kWarp, ranked_warp & ((1u << kRankShift) - 1));
}

void SharedShadow::check_order(const Cell& cell, uint32_t mask, uintptr_t address,
                               const SharedAccess& access) {
  for (int slot = 0; slot < (access.write ? kSlots : 2); ++slot) {
    if (!(cell.mask(slot) & mask) || (access.atomic && cell.who[slot] & kAtomic)) continue;
    const int thread = cell.thread(slot);
    if (came_before(thread, cell.barrier[slot], cell.warp[slot])) continue;
    report_bytes(Kind::kRace,
                 cell.who[slot] & kWrite ? ", unordered with a write" : ", unordered with a read",
                 address, access,
                 {anchor + cell.pc[slot], static_cast<int>(cell.warp[slot] >> kRankShift), thread});
    return;
  }
}

// By the running thread, whose `code` this is
void SharedShadow::remember_write(Cell& cell, uint32_t mask, uint32_t code, const void* pc) {
  // What the new write covers is no longer needed: who races with it has raced with this one.
  for (int old = 0; old < kSlots; ++old) {
    if (!(cell.mask(old) & ~mask)) cell.who[old] = 0;
  }
  const Stamps& now = current.thread->stamps;
  cell.set(cell.who[0] == 0 ? 0 : 1, code, now.barrier, now.warp | current.rank_bits,
           shortened(pc));
}

// Keeps the last two readers; of two warps if there are two.
void SharedShadow::remember_read(Cell& cell, uint32_t code, const void* pc) {
  const Thread& self = *current.thread;
  if (cell.who[2] != 0 && cell.thread(2) != self.number) {
    const bool last_is_of_own_warp = cell.thread(2) / kWarp == self.warp;
    const bool other_warp_is_kept = cell.who[3] != 0 && cell.thread(3) / kWarp != self.warp;
    if (!last_is_of_own_warp || !other_warp_is_kept) {
      cell.set(3, cell.who[2], cell.barrier[2], cell.warp[2], cell.pc[2]);
    }
  }
  cell.set(2, code, self.stamps.barrier, self.stamps.warp | current.rank_bits, shortened(pc));
}

void SharedShadow::access(uintptr_t address, size_t bytes, const SharedAccess& access) {
  if (!within_launch(address, bytes, access)) return;
  const Thread& self = *current.thread;
  const uintptr_t end = address + bytes;
  while (address < end) {
    const uintptr_t granule = address & ~uintptr_t{3};
    const uintptr_t until = granule + 4 < end ? granule + 4 : end;
    const uint32_t mask = (1u << (until - granule)) - (1u << (address - granule));
    const uint32_t code = self.number | (access.write ? kWrite : 0) |
                          (access.atomic ? kAtomic : 0) | mask << kMaskShift;
    Cell& cell = cell_at(address);
    if (cell.in_flight & mask) {
      report_bytes(Kind::kAsyncCopy, ", to which an asynchronous copy is in flight", address,
                   access);
    } else if ((!access.write || access.atomic) && (mask & ~cell.written)) {
      report_bytes(Kind::kUninitialized, ", which nothing has written", address, access);
    }
    // The same again needs no second look.
    const uint32_t ranked_warp = self.stamps.warp | current.rank_bits;
    if (!access.write) {
      if (!cell.is(2, code, self.stamps.barrier, ranked_warp) &&
          !cell.is_own_write(self.number, mask, self.stamps.barrier, ranked_warp)) {
        if (cell.who[0] | cell.who[1]) check_order(cell, mask, address, access);
        remember_read(cell, code, access.pc);
      }
    } else {
      if (!cell.is(0, code, self.stamps.barrier, ranked_warp) ||
          cell.who[1] | cell.who[2] | cell.who[3]) {
        check_order(cell, mask, address, access);
        remember_write(cell, mask, code, access.pc);
      }
      cell.written |= static_cast<uint8_t>(mask);
    }
    address = until;
  }
}

// All of a cell, by the running thread
void SharedShadow::write_all(Cell& cell, uintptr_t address, const SharedAccess& access) {
  check_order(cell, 15, address, access);
  remember_write(cell, 15, current.thread->number | kWrite | 15u << kMaskShift, access.pc);
}

void SharedShadow::begin_copy(uintptr_t address, const void* pc) {
  const SharedAccess write{true, false, pc};
  if (!within_launch(address, 16, write)) return;
  for (uintptr_t granule = address; granule < address + 16; granule += 4) {
    Cell& cell = cell_at(granule);
    if (cell.in_flight) {
      report_bytes(Kind::kAsyncCopy, ", to which another copy is in flight", granule, write);
    }
    write_all(cell, granule, write);
    cell.in_flight = 15;
    cell.written = 0;
  }
}

void SharedShadow::land_copy(uintptr_t address, const void* pc) {
  const SharedAccess write{true, false, pc};
  if (address - dynamic_ < kMostShared && address - dynamic_ + 16 > dynamic_bytes_) return;
  for (uintptr_t granule = address; granule < address + 16; granule += 4) {
    Cell& cell = cell_at(granule);
    cell.in_flight = 0;
    write_all(cell, granule, write);
    cell.written = 15;
  }
}

}  // namespace emulator
}  // namespace fastdl
