#include "settings.h"

#include <cstdlib>
#include <map>
#include <mutex>

#include "launch.h"
#include "random.h"

namespace fastdl::emulator {
namespace {

uint64_t first_seed() {
  const char* text = std::getenv("FASTDL_EMULATOR_SEED");
  return text ? std::strtoull(text, nullptr, 0) : 1;
}

struct Settings {
  std::mutex mutex;
  Random seeds{first_seed()};
  Device device;
  bool detectors = true, host_memory = false;
  std::map<Kernel, int> dynamic_shared;
};

Settings& settings() {
  static Settings all;
  return all;
}

thread_local cudaError_t last_error = cudaSuccess;

}  // namespace

void set_seed(uint64_t seed) { settings().seeds = Random(seed); }
uint64_t next_seed() { return settings().seeds.next(); }
void set_device(const Device& device) { settings().device = device; }
Device device() { return settings().device; }
void set_detectors(bool on) { settings().detectors = on; }
bool detectors() { return settings().detectors; }
void allow_host_memory(bool allow) { settings().host_memory = allow; }
bool host_memory_allowed() { return settings().host_memory; }

size_t max_dynamic_shared(Kernel kernel) {
  std::lock_guard lock(settings().mutex);
  const auto found = settings().dynamic_shared.find(kernel);
  return found == settings().dynamic_shared.end() ? kSharedWithoutAsking
                                                  : static_cast<size_t>(found->second);
}

cudaError_t set_attribute(Kernel kernel, cudaFuncAttribute attribute, int value) {
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  if (value < 0 || static_cast<size_t>(value) > kMostShared) {
    return set_last_error(cudaErrorInvalidValue);
  }
  std::lock_guard lock(settings().mutex);
  settings().dynamic_shared[kernel] = value;
  return cudaSuccess;
}

cudaError_t get_attributes(cudaFuncAttributes* attributes, Kernel kernel) {
  *attributes = {};
  attributes->maxThreadsPerBlock = kMostThreads;
  attributes->binaryVersion = attributes->ptxVersion = device().capability;
  attributes->maxDynamicSharedSizeBytes = static_cast<int>(max_dynamic_shared(kernel));
  return cudaSuccess;
}

cudaError_t set_last_error(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

}  // namespace fastdl::emulator

using fastdl::emulator::last_error;

cudaError_t cudaPeekAtLastError() { return last_error; }

cudaError_t cudaGetLastError() {
  const cudaError_t error = last_error;
  last_error = cudaSuccess;
  return error;
}
