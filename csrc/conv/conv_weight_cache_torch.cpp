#include "conv/conv_weight_cache_torch.h"

#include <array>
#include <cstring>
#include <list>
#include <mutex>
#include <unordered_map>

namespace fastdl {
namespace {

using at::Tensor;
using WeakStorage = c10::weak_intrusive_ptr<c10::StorageImpl>;

constexpr int64_t kSamples = 64;
using Sample = std::array<uint32_t, kSamples>;

template <class T>
Sample sample_of(const void* data, int64_t count) {
  Sample sample;
  for (int64_t i = 0; i < kSamples; ++i) {
    sample[i] = static_cast<const T*>(data)[i * (count - 1) / (kSamples - 1)];
  }
  return sample;
}

Sample sample_of(const Tensor& weight) {
  const void* data = weight.const_data_ptr();
  return weight.element_size() == 2 ? sample_of<uint16_t>(data, weight.numel())
                                    : sample_of<uint32_t>(data, weight.numel());
}

// What the order of a packed weight depends on: all but the batch, which no kernel packs for.
std::array<int64_t, 24> order_of(const ConvPackArgs& args, size_t bytes) {
  const ConvShape& s = args.shape;
  return {s.in_channels,
          s.out_channels,
          s.groups,
          s.channels_last,
          s.h.input,
          s.h.output,
          s.h.kernel,
          s.h.stride,
          s.h.padding,
          s.h.dilation,
          s.w.input,
          s.w.output,
          s.w.kernel,
          s.w.stride,
          s.w.padding,
          s.w.dilation,
          args.strides.out,
          args.strides.in,
          args.strides.h,
          args.strides.w,
          static_cast<int64_t>(args.direction),
          static_cast<int64_t>(args.algorithm),
          static_cast<int64_t>(args.dtype),
          static_cast<int64_t>(bytes)};
}

struct Entry {
  WeakStorage storage;
  const at::TensorImpl* weight;
  std::array<int64_t, 24> order;
  const void* data;
  uint32_t version;
  Sample sample;
  size_t bytes;
  PackedWeight packed;
};

struct Cache {
  std::mutex mutex;
  std::list<Entry> entries;  // those used last first
  std::unordered_multimap<const c10::StorageImpl*, std::list<Entry>::iterator> of_storage;
  size_t bytes = 0, limit = kPackedWeightBytes;

  void erase(std::list<Entry>::iterator entry) {
    const auto [begin, end] = of_storage.equal_range(entry->storage._unsafe_get_target());
    for (auto it = begin; it != end; ++it) {
      if (it->second == entry) {
        of_storage.erase(it);
        break;
      }
    }
    bytes -= entry->bytes;
    entries.erase(entry);
  }

  void erase_dead() {
    for (auto it = entries.begin(); it != entries.end();) {
      const auto entry = it++;
      if (entry->storage.expired()) erase(entry);
    }
  }

  void erase_beyond_limit() {
    while (bytes > limit) erase(std::prev(entries.end()));
  }
};

Cache& cache() {
  static Cache* const instance = new Cache;  // never destroyed: threads may outlive main
  return *instance;
}

}  // namespace

bool can_keep_packed(const Tensor& weight) {
  return !weight.is_inference() && weight.is_non_overlapping_and_dense() &&
         weight.storage().use_count() == 1;
}

PackedWeight find_packed(const Tensor& weight, const ConvPackArgs& args, size_t bytes) {
  Cache& c = cache();
  const std::lock_guard<std::mutex> lock(c.mutex);
  const auto [begin, end] = c.of_storage.equal_range(weight.storage().unsafeGetStorageImpl());
  if (begin == end) return nullptr;
  const auto order = order_of(args, bytes);
  for (auto it = begin; it != end; ++it) {
    const auto entry = it->second;
    if (entry->order != order) continue;
    if (entry->weight == weight.unsafeGetTensorImpl() && entry->data == args.weight &&
        entry->version == weight._version() && entry->sample == sample_of(weight)) {
      c.entries.splice(c.entries.begin(), c.entries, entry);
      return entry->packed;
    }
    c.erase(entry);
    break;
  }
  return nullptr;
}

void keep_packed(const Tensor& weight, const ConvPackArgs& args, size_t bytes,
                 const PackedWeight& packed) {
  Cache& c = cache();
  const std::lock_guard<std::mutex> lock(c.mutex);
  c.erase_dead();
  c.entries.push_front(
      {weight.storage().getWeakStorageImpl(), weight.unsafeGetTensorImpl(), order_of(args, bytes),
       args.weight, static_cast<uint32_t>(weight._version()), sample_of(weight), bytes, packed});
  c.of_storage.emplace(weight.storage().unsafeGetStorageImpl(), c.entries.begin());
  c.bytes += bytes;
  c.erase_beyond_limit();
}

std::pair<int64_t, int64_t> packed_weights() {
  Cache& c = cache();
  const std::lock_guard<std::mutex> lock(c.mutex);
  c.erase_dead();
  return {static_cast<int64_t>(c.entries.size()), static_cast<int64_t>(c.bytes)};
}

int64_t limit_packed_weights(int64_t bytes) {
  Cache& c = cache();
  const std::lock_guard<std::mutex> lock(c.mutex);
  const auto before = static_cast<int64_t>(c.limit);
  c.limit = static_cast<size_t>(bytes);
  c.erase_beyond_limit();
  return before;
}

}  // namespace fastdl
