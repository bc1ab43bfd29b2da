// Host threads for blocks, kept for the next launch.
#pragma once

#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace fastdl::emulator {

class Pool {
 public:
  static Pool& instance();

  // How many blocks are worth running at the same time.
  int preferred() const { return preferred_; }
  // Calls work(0) .. work(count - 1), each on a host thread of its own, 0 on the caller's.
  void run(int count, const std::function<void(int)>& work);

 private:
  Pool();
  void help(int number);

  int process_, preferred_;
  std::mutex mutex_;
  std::condition_variable begin_, end_;
  std::vector<std::thread> helpers_;
  const std::function<void(int)>* work_ = nullptr;
  int wanted_ = 0, busy_ = 0;
  uint64_t round_ = 0;
};

}  // namespace fastdl::emulator
