// One block, on one host thread: its threads as fibers, who of them can go on, and what they wait
// for together.
#pragma once

#include <cstdint>
#include <vector>

#include "async_copies.h"
#include "clocks.h"
#include "cluster.h"
#include "crash.h"
#include "fiber.h"
#include "launch.h"
#include "random.h"
#include "reports.h"
#include "shared_shadow.h"

namespace fastdl::emulator {

class Gang;
class DeviceMemory;

enum class State : uint8_t { kRunnable, kAtCollective, kAtBarrier, kAtCluster, kExited };

struct Thread {
  void* stack_pointer;
  uint3 index;
  uint16_t number;
  uint8_t lane, warp;
  State state;
  bool arrived_at_cluster;
  uint32_t cluster_phase;  // in which it arrived
  uint32_t place;          // its bit in the warp's masks of places
  uint32_t atomics;        // counted, as waiting in a loop must let others run
  Stamps stamps;
  const void* stopped_at;  // the call in which it waits
  AsyncCopies copies;
};

enum class Meeting : uint8_t { kBarrier, kShuffle, kVote, kLoadMatrices, kMultiply };

// Lanes that wait for each other. A lane brings a pointer into its own stack, in which the last one
// leaves the results.
struct Collective {
  Meeting meeting;
  uint32_t mask, arrived, places;
  const void* pc;
  void* brought[kWarp];
};

struct Warp {
  // Masks by place: a lane's place is its turn, and is drawn at random.
  uint32_t runnable, yielded;
  uint32_t gone;              // lanes that have exited or never existed
  uint32_t bit;               // of the warp in the block's masks of turns
  uint16_t thread_at[kWarp];  // by place
  Collective collectives[kWarp];
  int collective_count;
  WarpClocks clocks;
};

struct Barrier {
  int expected, arrived;
  const char* file;  // of __syncthreads()
  int line;
  const void* pc;
  int trues, result;
  uint32_t waiting[kMostWarps];  // places
  uint32_t warps;                // that have come
  uint16_t came[kMostWarps];     // threads
  uint32_t clocks[kMostWarps];
};

// The last one of a warp of another block of the cluster to this block's shared memory
struct AccessOfOther {
  uint32_t stamp = 0;
  const void* pc = nullptr;
  int thread = 0;
};

class Block {
 public:
  static constexpr int kBarriers = 16;

  // The one of this host thread
  static Block& here();

  // In a gang and a cluster, or with nullptr as the only one.
  void run(Launch& launch, int64_t number, Gang* gang, Cluster* cluster, int rank);

  // ---- called by the running thread
  int meet_at_barrier(int id, int threads, const char* file, int line, Reduction reduction,
                      bool predicate, bool wait, const void* pc);
  void meet(Meeting meeting, unsigned mask, void* brought,
            void (*finish)(Block&, Warp&, Collective&), const void* pc);
  void yield();
  [[noreturn]] void stop();  // the launch, after a mistake that nothing can follow
  void suspend(State state, const void* pc);
  // Now and then lets others run, as a thread may be waiting for what they do.
  void count_atomic(const void* pc) {
    self().stopped_at = pc;
    if (++self().atomics % 16 == 0) yield();
  }

  Thread& self() const { return *running_; }
  Warp& own_warp() { return warps_[running_->warp]; }
  Launch& launch() const { return *launch_; }
  Cluster& cluster() const { return *cluster_; }
  int rank_in_cluster() const { return rank_; }
  uint3 index() const { return index_; }
  SharedShadow& shadow() { return shadow_; }
  Warp& warp(int i) { return warps_[i]; }
  Thread& thread(int i) { return threads_[i]; }
  int warp_count() const { return warp_count_; }
  bool has_ended() const { return live_ == 0; }
  // The running thread, of another block of the cluster, accesses this one's shared memory.
  void access_by_other(uintptr_t address, size_t bytes, const SharedAccess& access);
  void make_runnable(Warp& warp, uint32_t places);
  void wake_from_cluster();
  void report(const Event& event) { emulator::report(*launch_, event); }

 private:
  Block();
  void prepare(int64_t number);
  void draw_order();
  Thread* pick();
  void enter(Thread& thread);
  void leave();
  bool revive_yielded();
  void report_stuck();
  void check_accesses_of_others();
  void exit_thread();
  void drop_from_collectives(Warp& warp, uint32_t lane_bit);
  static void thread_main();

  Launch* launch_ = nullptr;
  Gang* gang_ = nullptr;
  Cluster* cluster_ = nullptr;
  Cluster alone_{1, 0};
  int rank_ = 0;
  uint3 index_{};
  Thread* running_ = nullptr;
  bool moved_ = false;         // since its turn began
  void* scheduler_ = nullptr;  // its stack pointer
  int live_ = 0, warp_count_ = 0;
  uint32_t runnable_warps_ = 0;  // by turn
  uint8_t warp_at_[kMostWarps];  // by turn
  int current_warp_ = 0;
  int64_t idle_yields_ = 0;
  uint64_t switches_ = 0;
  Random random_;
  Stacks stacks_;
  HandlerStack handler_stack_;
  SharedShadow shadow_;
  Barrier barriers_[kBarriers];
  Warp warps_[kMostWarps];
  std::vector<Thread> threads_;
  std::vector<AccessOfOther> accesses_of_others_;  // by rank and warp
};

enum class Mode : uint8_t {
  kOutside,    // of kernels, or the emulator itself works for one
  kUnwatched,  // a kernel's own code, without the detectors
  kWatched,
};

// What the running host thread is at; nothing is, outside kernels. The checks of every access read
// this: it has copies of what they need.
struct Current {
  static constexpr int kRankShift = 28;

  Thread* thread;  // nullptr outside kernels
  Block* block;
  uintptr_t stack;  // lowest address
  Mode mode;
  uint32_t rank_bits;  // the block's rank in the cluster << kRankShift
  const WarpClocks* clocks;
  const DeviceMemory* memory;
  uint64_t accesses;
};
extern thread_local constinit Current current;

// While the emulator itself works for a kernel. It shares functions of the C++ library with the
// kernels, and the linker may have kept the watched form of one.
class Outside {
 public:
  Outside() : mode_(current.mode) { current.mode = Mode::kOutside; }
  ~Outside() { current.mode = mode_; }
  Outside(const Outside&) = delete;
  Outside& operator=(const Outside&) = delete;

 private:
  Mode mode_;
};

}  // namespace fastdl::emulator
