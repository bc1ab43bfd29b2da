// Kernels with a planted mistake, which must be reported, and without it, which must be clean.
#pragma once

#include <string>
#include <utility>

#include "check.h"
#include "common/launch.cuh"
#include "emulator.h"

namespace fastdl::testing {

// Put before the mistake, in an expression that has one line: says which line it is. Kernels have
// `int* planted_line`.
#define PLANTED (*planted_line = __LINE__)

inline constexpr int kSeeds = 5;
inline constexpr CudaTarget kTarget{nullptr, 4, 90};

// Of device memory, filled with what it is given
template <class T>
class DeviceArray {
 public:
  explicit DeviceArray(size_t count, T value = {})
      : DeviceArray(count, [=](size_t) { return value; }) {}
  template <class F>
    requires std::is_invocable_v<F, size_t>
  DeviceArray(size_t count, F&& value)
      : data_(static_cast<T*>(emulator::allocate(count * sizeof(T)))) {
    for (size_t i = 0; i < count; ++i) data_[i] = value(i);
  }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;
  ~DeviceArray() { emulator::release(data_); }

  operator T*() const { return data_; }

 private:
  T* data_;
};

// Runs f for each of several orders of the threads.
template <class F>
void for_each_seed(F&& f) {
  for (int seed = 1; seed <= kSeeds; ++seed) {
    emulator::set_seed(static_cast<uint64_t>(seed));
    f();
  }
}

// The first ones
inline std::string texts(const std::vector<emulator::Report>& reports) {
  std::string all;
  for (size_t i = 0; i < reports.size() && i < 3; ++i) all += "\n  " + reports[i].text;
  return all.empty() ? " nothing" : all;
}

// The kernel must be reported, for this and at the line that it says is planted.
template <class... Parameters, class... Arguments>
void must_report(emulator::Kind kind, const std::string& name, const LaunchShape& shape,
                 void (*kernel)(Parameters...), Arguments... arguments) {
  emulator::print_reports(false);
  for_each_seed([&] {
    DeviceArray<int> line(1, -1);
    (void)launch(kernel, shape, kTarget, arguments..., static_cast<int*>(line));
    (void)cudaGetLastError();
    bool found = false;
    const auto reports = emulator::take_reports();
    for (const auto& report : reports) {
      found |= report.kind == kind && report.kernel.find(name) != std::string::npos &&
               report.text.find(".cu:" + std::to_string(*line)) != std::string::npos;
    }
    check(found, name + " must be reported as " + emulator::kind_name(kind) + " at line " +
                     std::to_string(*line) + ", was:" + texts(reports));
  });
  emulator::print_reports(true);
}

template <class... Parameters, class... Arguments>
void must_be_clean(const std::string& name, const LaunchShape& shape, void (*kernel)(Parameters...),
                   Arguments... arguments) {
  for_each_seed([&] {
    DeviceArray<int> line(1, -1);
    const Status status = launch(kernel, shape, kTarget, arguments..., static_cast<int*>(line));
    const auto reports = emulator::take_reports();
    check(status.ok() && reports.empty(), name + " must be clean, was:" + texts(reports));
  });
}

// A kernel template<bool kPlanted>: both of its forms
#define CHECK_PLANTED(kind, kernel, shape, ...)                                               \
  must_report(emulator::Kind::kind, #kernel, shape, kernel<true> __VA_OPT__(, ) __VA_ARGS__); \
  must_be_clean(#kernel, shape, kernel<false> __VA_OPT__(, ) __VA_ARGS__)

}  // namespace fastdl::testing
