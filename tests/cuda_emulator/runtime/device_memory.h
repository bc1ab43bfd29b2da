// Device memory: one region of addresses, in which every access outside an allocation is known.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace fastdl::emulator {

class DeviceMemory {
 public:
  static DeviceMemory& instance();

  void* allocate(size_t bytes);  // nullptr: no memory left
  bool release(void* pointer);   // false: no allocation begins there

  bool contains(uintptr_t address) const { return address - base_ < bytes_; }
  // Whether `bytes` from `address` on, which is in the region, are in one live allocation. Takes
  // one look, as a table has the number of valid bytes of every unit.
  bool valid(uintptr_t address, size_t bytes) const {
    const size_t offset = address - base_, in_unit = offset % kUnit;
    const uint16_t here = valid_bytes_[offset / kUnit];
    if (here <= kUnit && in_unit + bytes <= here) return true;
    return valid_over_units(offset, bytes);
  }
  bool was_freed(uintptr_t address) const {
    return valid_bytes_[(address - base_) / kUnit] == kFreed;
  }
  // "12 bytes after an allocation of 400 bytes"
  std::string describe(uintptr_t address) const;

 private:
  static constexpr size_t kUnit = 256;  // alignment of allocations
  static constexpr size_t kRedZone = 4096;
  static constexpr uint16_t kFreed = 0xffff;

  DeviceMemory();
  bool valid_over_units(size_t offset, size_t bytes) const;

  uintptr_t base_ = 0;
  size_t bytes_ = 0, next_ = 0;
  uint16_t* valid_bytes_ = nullptr;  // of each unit, or kFreed
};

}  // namespace fastdl::emulator
