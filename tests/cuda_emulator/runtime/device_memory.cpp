#include "device_memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <map>
#include <mutex>

#include "../emulator.h"
#include "settings.h"

namespace fastdl::emulator {
namespace {

struct Allocations {
  std::mutex mutex;
  std::map<uintptr_t, size_t> live, freed;
};

Allocations& allocations() {
  static Allocations all;
  return all;
}

void* reserve(size_t bytes) {
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return memory == MAP_FAILED ? nullptr : memory;
}

}  // namespace

DeviceMemory& DeviceMemory::instance() {
  static DeviceMemory* memory = new DeviceMemory;
  return *memory;
}

// Addresses only: the system gives memory where it is touched.
DeviceMemory::DeviceMemory() {
  for (bytes_ = size_t{64} << 30; bytes_ >= size_t{1} << 30; bytes_ /= 2) {
    void* memory = reserve(bytes_);
    if (!memory) continue;
    base_ = reinterpret_cast<uintptr_t>(memory);
    valid_bytes_ = static_cast<uint16_t*>(reserve(bytes_ / kUnit * sizeof(uint16_t)));
    if (valid_bytes_) return;
    munmap(memory, bytes_);
  }
  std::fputs("CUDA emulator: no addresses for device memory\n", stderr);
  std::abort();
}

// Addresses are not used again while there are others, so that a freed pointer stays one.
void* DeviceMemory::allocate(size_t bytes) {
  std::lock_guard lock(allocations().mutex);
  const size_t units = std::max<size_t>(1, (bytes + kUnit - 1) / kUnit);
  if (next_ + units * kUnit + 2 * kRedZone > bytes_) {
    if (!allocations().live.empty()) return nullptr;
    madvise(valid_bytes_, bytes_ / kUnit * sizeof(uint16_t), MADV_DONTNEED);
    allocations().freed.clear();
    next_ = 0;
  }
  const size_t offset = next_ + kRedZone;
  next_ = offset + units * kUnit;
  size_t left = bytes;
  for (size_t unit = offset / kUnit; left > 0; ++unit) {
    valid_bytes_[unit] = static_cast<uint16_t>(std::min(left, kUnit));
    left -= std::min(left, kUnit);
  }
  allocations().live[base_ + offset] = bytes;
  void* pointer = reinterpret_cast<void*>(base_ + offset);
  constexpr size_t kFilled = size_t{64} << 20;  // with NaN; the rest of the large ones stays zero
  std::memset(pointer, 0xff, std::min(bytes, kFilled));
  return pointer;
}

bool DeviceMemory::release(void* pointer) {
  if (!pointer) return true;
  Allocations& all = allocations();
  std::lock_guard lock(all.mutex);
  const auto found = all.live.find(reinterpret_cast<uintptr_t>(pointer));
  if (found == all.live.end()) return false;
  const size_t units = (found->second + kUnit - 1) / kUnit;
  std::fill_n(valid_bytes_ + (found->first - base_) / kUnit, units, kFreed);
  const uintptr_t page = (found->first + 4095) & ~uintptr_t{4095};
  const uintptr_t end = found->first + units * kUnit;
  if (end > page + 4096) {
    madvise(reinterpret_cast<void*>(page), (end - page) & ~size_t{4095}, MADV_DONTNEED);
  }
  all.freed.insert(*found);
  all.live.erase(found);
  return true;
}

bool DeviceMemory::valid_over_units(size_t offset, size_t bytes) const {
  if (bytes > bytes_ - offset) return false;
  while (bytes > 0) {
    const size_t in_unit = offset % kUnit, part = std::min(bytes, kUnit - in_unit);
    const uint16_t here = valid_bytes_[offset / kUnit];
    if (here > kUnit || in_unit + part > here) return false;
    offset += part;
    bytes -= part;
  }
  return true;
}

std::string DeviceMemory::describe(uintptr_t address) const {
  Allocations& all = allocations();
  std::lock_guard lock(all.mutex);
  std::string nearest = "far from any allocation";
  uintptr_t distance = 1 << 20;
  for (const auto* map : {&all.live, &all.freed}) {
    const std::string what = map == &all.live ? "an allocation of " : "a freed allocation of ";
    auto after = map->upper_bound(address);
    const auto bytes = [&](uintptr_t n) { return std::to_string(n) + " bytes"; };
    if (after != map->end() && after->first - address < distance) {
      distance = after->first - address;
      nearest = bytes(distance) + " before " + what + bytes(after->second);
    }
    if (after == map->begin()) continue;
    const auto [begin, size] = *std::prev(after);
    if (address < begin + size)
      return "at byte " + std::to_string(address - begin) + " of " + what + bytes(size);
    if (address - begin - size < distance) {
      distance = address - begin - size;
      nearest = bytes(distance) + " after " + what + bytes(size);
    }
  }
  return nearest;
}

void* allocate(size_t bytes) { return DeviceMemory::instance().allocate(bytes); }

void release(void* pointer) { DeviceMemory::instance().release(pointer); }

}  // namespace fastdl::emulator
