#include "pool.h"

#include <unistd.h>

#include <algorithm>

namespace fastdl::emulator {

// Is never destroyed: its threads wait until the process ends. A forked process has none of them.
Pool& Pool::instance() {
  static Pool* pool = nullptr;
  if (!pool || pool->process_ != getpid()) pool = new Pool;
  return *pool;
}

Pool::Pool()
    : process_(getpid()),
      preferred_(std::clamp(static_cast<int>(std::thread::hardware_concurrency()), 1, 16)) {}

void Pool::help(int number) {
  uint64_t seen = 0;
  std::unique_lock lock(mutex_);
  while (true) {
    begin_.wait(lock, [&] { return round_ != seen && work_; });
    seen = round_;
    if (number >= wanted_) continue;
    const auto& work = *work_;
    lock.unlock();
    work(number);
    lock.lock();
    if (--busy_ == 0) end_.notify_one();
  }
}

void Pool::run(int count, const std::function<void(int)>& work) {
  if (count > 1) {
    std::lock_guard lock(mutex_);
    for (int i = static_cast<int>(helpers_.size()) + 1; i < count; ++i) {
      helpers_.emplace_back([this, i] { help(i); });
      helpers_.back().detach();
    }
    work_ = &work;
    wanted_ = count;
    busy_ = count - 1;
    ++round_;
    begin_.notify_all();
  }
  work(0);
  if (count > 1) {
    std::unique_lock lock(mutex_);
    end_.wait(lock, [&] { return busy_ == 0; });
    work_ = nullptr;
  }
}

}  // namespace fastdl::emulator
