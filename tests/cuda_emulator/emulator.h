// The emulated GPU as tests see it: its memory, its settings, and what went wrong in kernels.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace fastdl::emulator {

enum class Kind {
  kRace,              // unordered accesses to shared memory, one of them a write
  kUninitialized,     // shared memory read before it was written in this block
  kOutOfBounds,       // outside every allocation, or of the launch's dynamic shared memory
  kUseAfterFree,      // device memory that was freed
  kHostMemory,        // memory of the host that is not the device's
  kMisaligned,        // an access that is not aligned to its size
  kDivergentBarrier,  // threads at different barriers, or gone, while others wait
  kWarpCollective,    // lanes that do not all come, or not with the same mask
  kDeadlock,          // nothing can go on: named and cluster barriers, endless waiting
  kAsyncCopy,         // touched while in flight, or never waited for
  kLaunch,            // a launch that the device refuses
  kEndedBlock,        // shared memory of a block of the cluster that has ended
  kTrap,              // __trap()
};

const char* kind_name(Kind kind);

struct Report {
  Kind kind;
  std::string kernel;
  std::string file;  // as the compiler was given it
  int line;
  int64_t times;     // that it happened in this launch, at this instruction
  std::string text;  // all of it, for people
};

// What was reported since the last call; at most 100, each instruction once a launch.
std::vector<Report> take_reports();
// Whether reports are printed, too. Tests that plant mistakes turn it off.
void print_reports(bool print);

// Device memory. Accesses beyond it are found to the byte.
void* allocate(size_t bytes);
void release(void* pointer);

// The order in which threads run is drawn anew for every launch, from this seed.
// FASTDL_EMULATOR_SEED in the environment sets the first one.
void set_seed(uint64_t seed);

struct Device {
  int multiprocessors = 4;
  int capability = 90;  // 10 * major + minor
};
void set_device(const Device& device);
Device device();

// Whether kernels are watched at all.
void set_detectors(bool on);
// Whether kernels may access any memory of the host, as if it were the device's.
void allow_host_memory(bool allow);

// What has been done, for measurements.
struct Counts {
  uint64_t switches, accesses;
};
Counts counts();

}  // namespace fastdl::emulator
