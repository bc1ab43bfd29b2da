#include "torch/workspace.h"

#include <algorithm>
#include <mutex>
#include <vector>

namespace fastdl {
namespace {

struct Block {
  size_t bytes;
  c10::DataPtr memory;
};

struct Store {
  std::mutex mutex;
  std::vector<Block*> blocks;  // in the order of their release
  size_t bytes = 0;

  // The smallest block that is large enough, or null.
  Block* take(size_t wanted) {
    const std::lock_guard<std::mutex> lock(mutex);
    auto best = blocks.end();
    for (auto it = blocks.begin(); it != blocks.end(); ++it) {
      if ((*it)->bytes >= wanted && (best == blocks.end() || (*it)->bytes < (*best)->bytes))
        best = it;
    }
    if (best == blocks.end()) return nullptr;
    Block* block = *best;
    blocks.erase(best);
    bytes -= block->bytes;
    return block;
  }

  void put(Block* block) {
    std::vector<Block*> surplus;
    {
      const std::lock_guard<std::mutex> lock(mutex);
      blocks.push_back(block);
      bytes += block->bytes;
      while (bytes > kKeptBytes) {
        surplus.push_back(blocks.front());
        bytes -= blocks.front()->bytes;
        blocks.erase(blocks.begin());
      }
    }
    for (Block* one : surplus) delete one;
  }
};

Store& store() {
  static Store* const instance = new Store;  // never destroyed: threads may outlive main
  return *instance;
}

void release(void* block) { store().put(static_cast<Block*>(block)); }

}  // namespace

c10::DataPtr workspace_memory(size_t bytes) {
  if (bytes == 0) return {};
  if (bytes <= kFreshBytes) return c10::GetAllocator(c10::kCPU)->allocate(bytes);
  Block* block = store().take(bytes);
  if (block == nullptr) block = new Block{bytes, c10::GetAllocator(c10::kCPU)->allocate(bytes)};
  return {block->memory.get(), block, release, c10::Device(c10::kCPU)};
}

}  // namespace fastdl
