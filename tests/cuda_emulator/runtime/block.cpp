// Which thread of the block runs next. A thread that waits switches straight to the next one.
#include "block.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <memory>
#include <utility>

#include "device_memory.h"
#include "gang.h"

namespace fastdl::emulator {

thread_local constinit Current current{};

namespace {
std::atomic<uint64_t> all_switches, all_accesses;
}

Counts counts() { return {all_switches, all_accesses}; }

Block& Block::here() {
  // Not itself thread_local, where it would count as shared memory
  static thread_local std::unique_ptr<Block> block(new Block);
  return *block;
}

Block::Block() : threads_(kMostThreads) {}

void Block::run(Launch& launch, int64_t number, Gang* gang, Cluster* cluster, int rank) {
  launch_ = &launch;
  gang_ = gang;
  cluster_ = cluster ? cluster : &alone_;
  rank_ = cluster ? rank : 0;
  if (!cluster) {
    alone_.reset(1, launch.threads());
    alone_.set_member(0, this);
  }
  prepare(number);
  current = {};
  current.block = this;
  current.rank_bits = static_cast<uint32_t>(rank_) << Current::kRankShift;
  current.memory = &DeviceMemory::instance();
  while (live_ > 0 && !launch.stopped.load(std::memory_order_relaxed)) {
    if (Thread* next = pick()) {
      enter(*next);
    } else if (revive_yielded()) {
      if (gang_) gang_->pass_turn(true);
    } else if (!gang_ || !gang_->pass_turn(std::exchange(moved_, false))) {
      if (!launch.stopped || (gang_ && gang_->is_stuck())) report_stuck();
      break;
    }
  }
  for (int i = 0; i < launch.threads(); ++i) threads_[i].copies.reset();
  all_accesses += current.accesses;
  all_switches += switches_;
  switches_ = 0;
  current = {};
}

void Block::prepare(int64_t number) {
  const Launch& launch = *launch_;
  index_ = {static_cast<unsigned>(number % launch.grid.x),
            static_cast<unsigned>(number / launch.grid.x % launch.grid.y),
            static_cast<unsigned>(number / launch.grid.x / launch.grid.y)};
  random_ = Random(launch.seed + static_cast<uint64_t>(number) * 0x9e3779b97f4a7c15);
  live_ = launch.threads();
  warp_count_ = (live_ + kWarp - 1) / kWarp;
  current_warp_ = 0;
  stacks_.provide(live_);
  shadow_.begin_block(launch.dynamic_shared);
  for (Barrier& barrier : barriers_) barrier.arrived = 0;
  accesses_of_others_.assign(cluster_->size() > 1 ? cluster_->size() * kMostWarps : 0, {});
  for (int i = 0; i < live_; ++i) {
    Thread& thread = threads_[i];
    thread.stack_pointer = stacks_.start(i, thread_main);
    const unsigned n = static_cast<unsigned>(i);
    thread.index = {n % launch.block.x, n / launch.block.x % launch.block.y,
                    n / launch.block.x / launch.block.y};
    thread.number = static_cast<uint16_t>(i);
    thread.lane = static_cast<uint8_t>(i % kWarp);
    thread.warp = static_cast<uint8_t>(i / kWarp);
    thread.state = State::kRunnable;
    thread.arrived_at_cluster = false;
    thread.atomics = 0;
    thread.stamps = {};
  }
  for (int w = 0; w < warp_count_; ++w) {
    Warp& warp = warps_[w];
    const int lanes = std::min(kWarp, live_ - w * kWarp);
    warp.gone = lanes == kWarp ? 0 : ~0u << lanes;
    warp.yielded = 0;
    warp.collective_count = 0;
    warp.clocks.reset();
  }
  draw_order();
}

// All threads that are there become runnable, in a new order.
void Block::draw_order() {
  idle_yields_ = 0;
  runnable_warps_ = 0;
  for (int w = 0; w < warp_count_; ++w) warp_at_[w] = static_cast<uint8_t>(w);
  random_.shuffle(warp_at_, static_cast<uint32_t>(warp_count_));
  for (int turn = 0; turn < warp_count_; ++turn) {
    Warp& warp = warps_[warp_at_[turn]];
    warp.bit = 1u << turn;
    uint8_t lanes[kWarp];
    int count = 0;
    for (uint32_t left = ~warp.gone; left != 0; left &= left - 1) {
      lanes[count++] = static_cast<uint8_t>(std::countr_zero(left));
    }
    random_.shuffle(lanes, static_cast<uint32_t>(count));
    for (int place = 0; place < count; ++place) {
      const int number = warp_at_[turn] * kWarp + lanes[place];
      warp.thread_at[place] = static_cast<uint16_t>(number);
      threads_[number].place = 1u << place;
    }
    warp.runnable = count == kWarp ? ~0u : (1u << count) - 1;
    if (count > 0) runnable_warps_ |= warp.bit;
  }
}

Thread* Block::pick() {
  Warp* warp = &warps_[current_warp_];
  if (warp->runnable == 0) {
    if (runnable_warps_ == 0) return nullptr;
    current_warp_ = warp_at_[std::countr_zero(runnable_warps_)];
    warp = &warps_[current_warp_];
  }
  Thread* thread = &threads_[warp->thread_at[std::countr_zero(warp->runnable)]];
  warp->runnable &= warp->runnable - 1;
  if (warp->runnable == 0) runnable_warps_ &= ~warp->bit;
  return thread;
}

void Block::make_runnable(Warp& warp, uint32_t places) {
  warp.runnable |= places;
  if (places != 0) runnable_warps_ |= warp.bit;
}

static void set_current(Thread& thread, const Stacks& stacks, const Warp* warps) {
  current.thread = &thread;
  current.clocks = &warps[thread.warp].clocks;
  current.stack = reinterpret_cast<uintptr_t>(stacks.low(thread.number));
}

// From the scheduler to a thread; comes back when no thread can run.
void Block::enter(Thread& thread) {
  running_ = &thread;
  moved_ = true;
  set_current(thread, stacks_, warps_);

  ++switches_;
  fastdl_emulator_switch(&scheduler_, thread.stack_pointer);
  current.thread = nullptr;
}

// The running thread goes to sleep; the next one runs.
void Block::leave() {
  Thread& from = *running_;
  Thread* next = launch_->stopped.load(std::memory_order_relaxed) ? nullptr : pick();
  if (next == &from) return;
  ++switches_;
  if (next) {
    running_ = next;
    set_current(*next, stacks_, warps_);
    fastdl_emulator_switch(&from.stack_pointer, next->stack_pointer);
  } else {
    fastdl_emulator_switch(&from.stack_pointer, scheduler_);
  }
}

void Block::suspend(State state, const void* pc) {
  Thread& thread = self();
  thread.state = state;
  thread.stopped_at = pc;
  leave();
  thread.state = State::kRunnable;
}

void Block::yield() {
  Outside outside;
  own_warp().yielded |= self().place;
  leave();
}

bool Block::revive_yielded() {
  // After so many looks without anything else happening; seconds, where other host threads may
  // still do what is waited for.
  const int64_t hopeless = gang_ || launch_->blocks() == 1 ? 500'000 : 20'000'000;
  Thread* one = nullptr;
  for (int w = 0; w < warp_count_; ++w) {
    Warp& warp = warps_[w];
    if (warp.yielded == 0) continue;
    one = &threads_[warp.thread_at[std::countr_zero(warp.yielded)]];
    idle_yields_ += std::popcount(warp.yielded);
    make_runnable(warp, warp.yielded);
    warp.yielded = 0;
  }
  if (one && idle_yields_ > hopeless) {
    current.thread = one;
    report({Kind::kDeadlock, one->stopped_at, "looks at memory again and again, in vain", {}});
    current.thread = nullptr;
    launch_->stopped = true;
  }
  return one != nullptr;
}

void Block::wake_from_cluster() {
  for (int i = 0; i < warp_count_ * kWarp; ++i) {
    if (threads_[i].state != State::kAtCluster) continue;
    threads_[i].state = State::kRunnable;
    make_runnable(warps_[i / kWarp], threads_[i].place);
  }
}

void Block::stop() {
  launch_->stopped = true;
  leave();
  __builtin_unreachable();
}

void Block::thread_main() {
  const Launch& launch = *current.block->launch_;
  current.mode = launch.watched ? Mode::kWatched : Mode::kUnwatched;
  launch.invoke(launch.arguments);
  current.mode = Mode::kOutside;
  current.block->exit_thread();
}

void Block::exit_thread() {
  Thread& thread = self();
  Warp& warp = own_warp();
  if (!thread.copies.in_flight.empty()) {
    report({Kind::kAsyncCopy,
            thread.copies.in_flight.front().pc,
            "the thread ended without waiting for this copy",
            {}});
  }
  thread.state = State::kExited;
  warp.gone |= 1u << thread.lane;
  if (--live_ == 0) check_accesses_of_others();
  drop_from_collectives(warp, 1u << thread.lane);
  cluster_->thread_ended();
  leave();
  __builtin_unreachable();
}

}  // namespace fastdl::emulator
