// embedding on CPU.
//   forward   y[i] = weight[index[i]]: rows copied, the next one fetched meanwhile.
//   backward  dw[v] = the sum of dy[i] over all i with index[i] = v, 0 where there is none.
// In the backward every thread owns a range of rows v, cut so that rows to write and gradients to
// read are shared evenly however often an index occurs. It goes through all indices from the last
// to the first and links those of its range into lists, one a row, which then run in the order of
// i: no sorting, no atomics, and the same bits with any number of threads. Rows between those with
// a gradient are zeroed in one go. 16-bit types are summed in float32.
// Memory: forward, rows read and written; backward, dy read and dw written once, past the cache
// when larger than it. Floor: these bytes / copy bandwidth.
#include <algorithm>
#include <cstring>

#include "common/dispatch.h"
#include "common/loops_cpu.h"
#include "common/parallel.h"
#include "embedding/embedding.h"

namespace fastdl {
inline namespace CPU_CAPABILITY {
namespace {

constexpr int64_t kBytesWorthAThread = 64 << 10;
constexpr int64_t kBytesAhead = 1024;  // fetched while a row is copied: several rows if short
constexpr int64_t kShortRow = 256;     // bytes

template <class F>
void dispatch_index(bool is_int64, F&& f) {
  if (is_int64) return f.template operator()<int64_t>();
  f.template operator()<int32_t>();
}

// As floats where the bytes are a multiple of them: moving changes no bits.
void copy_row(const char* from, char* to, int64_t bytes, const char* ahead, bool streaming) {
  if (bytes % sizeof(float) != 0) {
    std::memcpy(to, from, bytes);
    return;
  }
  const float* const x = reinterpret_cast<const float*>(from);
  const float* const next = reinterpret_cast<const float*>(ahead);
  float* const y = reinterpret_cast<float*>(to);
  for_output_vectors(y, bytes / sizeof(float), streaming, [&](int64_t i, auto count, int) {
    prefetch(next + i);
    write_vector(y + i, load_vector(x + i, count, 0.0f), count, streaming);
  });
}

// Several short rows are on their way at a time without being fetched ahead.
void copy_short_row(const char* from, char* to, int64_t bytes) {
  constexpr int64_t width = kWidth<float> * sizeof(float);
  if (bytes % width != 0) {
    std::memcpy(to, from, bytes);
    return;
  }
  for (int64_t i = 0; i < bytes; i += width) {
    store_vector(reinterpret_cast<float*>(to + i),
                 load_vector(reinterpret_cast<const float*>(from + i)));
  }
}

// What the threads of a backward share: for each row of dw the first index of its list, for each
// index the next one of the same list; -1 ends it.
struct Lists {
  int32_t* first;  // [vocabulary]
  int32_t* next;   // [count]
};

template <class Index>
void link(const EmbeddingIndices& indices, int64_t padding_idx, int64_t begin, int64_t end,
          const Lists& lists) {
  const Index* const data = static_cast<const Index*>(indices.data);
  std::fill(lists.first + begin, lists.first + end, -1);
  for (int64_t i = indices.count - 1; i >= 0; --i) {
    const int64_t row = data[i];
    if (row < begin || row >= end || row == padding_idx) continue;
    lists.next[i] = lists.first[row];
    lists.first[row] = static_cast<int32_t>(i);
  }
}

// The ends of `tasks` ranges of rows of about equal cost: one for each row, one for each gradient.
template <class Index>
void share_rows(const EmbeddingIndices& indices, int64_t tasks, int32_t* counts, int64_t* ends) {
  const Index* const data = static_cast<const Index*>(indices.data);
  std::fill(counts, counts + indices.vocabulary, 1);
  for (int64_t i = 0; i < indices.count; ++i) ++counts[data[i]];
  const int64_t total = indices.vocabulary + indices.count;
  int64_t cost = 0, task = 0;
  for (int64_t row = 0; row < indices.vocabulary; ++row) {
    cost += counts[row];
    while (task < tasks && cost * tasks >= total * (task + 1)) ends[task++] = row + 1;
  }
}

// `following` is the first index of the next list, whose gradient is fetched meanwhile, or -1.
template <class T>
void sum_row(const T* grad, const Lists& lists, int32_t first, int32_t following, int64_t dim,
             Accumulate<T>* sums, T* output, bool streaming) {
  using A = Accumulate<T>;
  for (int32_t i = first; i >= 0;) {
    const int32_t next = lists.next[i];
    const T* const row = grad + i * dim;
    const int32_t fetched = next >= 0 ? next : following;
    const T* const ahead = fetched >= 0 ? grad + fetched * dim : row;
    for_output_vectors(output, dim, streaming, [&](int64_t at, auto count, int) {
      prefetch(ahead + at);
      Vec<T> value = load_vector(row + at, count, A(0));
      if (i != first) value = load_vector(sums + at, count, A(0)) + value;
      if (next >= 0) {
        store_vector(sums + at, value, count);
      } else {
        write_vector(output + at, value, count, streaming);
      }
    });
    i = next;
  }
}

template <class T>
void write_rows(const EmbeddingBackwardArgs& args, const Lists& lists, int64_t begin, int64_t end,
                Accumulate<T>* sums, bool streaming) {
  const T* const grad = static_cast<const T*>(args.grad_output);
  T* const output = static_cast<T*>(args.grad_weight);
  const auto next_used = [&](int64_t row) {
    while (row < end && lists.first[row] < 0) ++row;
    return row;
  };
  for (int64_t row = begin, used = next_used(begin); row < end;) {
    T* const zeros = output + row * args.dim;
    for_output_vectors(zeros, (used - row) * args.dim, streaming, [&](int64_t i, auto count, int) {
      write_vector(zeros + i, Vec<T>(Accumulate<T>(0)), count, streaming);
    });
    if (used == end) break;
    const int64_t next = next_used(used + 1);
    sum_row(grad, lists, lists.first[used], next < end ? lists.first[next] : -1, args.dim, sums,
            output + used * args.dim, streaming);
    row = used + 1;
    used = next;
  }
  finish_writes();
}

}  // namespace
}  // namespace CPU_CAPABILITY

template <>
bool embedding_indices_in_range<kBuildIsa>(const EmbeddingIndices& indices) {
  bool inside = true;
  dispatch_index(indices.is_int64, [&]<class Index> {
    const Index* const data = static_cast<const Index*>(indices.data);
    Index least = 0, most = -1;  // without a branch an index, so that the loop becomes vectors
    for (int64_t i = 0; i < indices.count; ++i) {
      least = std::min(least, data[i]);
      most = std::max(most, data[i]);
    }
    inside = least >= 0 && most < indices.vocabulary;
  });
  return inside;
}

template <>
void embedding_forward<kBuildIsa>(const EmbeddingForwardArgs& args) {
  const int64_t bytes = args.row_bytes;
  const bool streaming = worth_streaming(2 * args.indices.count * bytes);
  const int64_t ahead = std::max<int64_t>(1, kBytesAhead / bytes);
  const int64_t grain = std::max<int64_t>(1, kBytesWorthAThread / bytes);
  const char* const weight = static_cast<const char*>(args.weight);
  char* const output = static_cast<char*>(args.output);
  dispatch_index(args.indices.is_int64, [&]<class Index> {
    const Index* const data = static_cast<const Index*>(args.indices.data);
    const auto row_of = [&](int64_t i) { return weight + data[i] * args.weight_stride; };
    parallel_for(0, args.indices.count, grain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; bytes <= kShortRow && i < end; ++i) {
        copy_short_row(row_of(i), output + i * bytes, bytes);
      }
      for (int64_t i = begin; bytes > kShortRow && i < end; ++i) {
        const char* const next = row_of(std::min(i + ahead, end - 1));
        copy_row(row_of(i), output + i * bytes, bytes, next, streaming);
      }
      finish_writes();
    });
  });
}

template <>
void embedding_backward<kBuildIsa>(const EmbeddingBackwardArgs& args) {
  const EmbeddingIndices& indices = args.indices;
  const int64_t rows = indices.vocabulary, dim = args.dim;
  dispatch_dtype<CpuTypes>(args.dtype, [&]<class T> {
    const int64_t bytes = (rows + indices.count) * dim * static_cast<int64_t>(sizeof(T));
    // Twice, as the gradient before this one is often still in the cache.
    const bool streaming = worth_streaming(2 * bytes);
    const int64_t tasks =
        std::clamp<int64_t>(bytes / (4 * kBytesWorthAThread), 1, std::min(num_threads(), rows));
    // One piece of memory: the calling thread is a worker too.
    const int64_t words = tasks * (dim * (sizeof(Accumulate<T>) / 4) + 2) + 2 * rows;
    int64_t* const ends =
        static_cast<int64_t*>(thread_scratch((words + indices.count) * sizeof(int32_t)));
    Accumulate<T>* const sums = reinterpret_cast<Accumulate<T>*>(ends + tasks);
    int32_t* const counts = reinterpret_cast<int32_t*>(sums + tasks * dim);
    const Lists lists{counts + rows, counts + 2 * rows};
    dispatch_index(indices.is_int64, [&]<class Index> {
      ends[0] = rows;
      if (tasks > 1) share_rows<Index>(indices, tasks, counts, ends);
      parallel_for(0, tasks, 1, [&](int64_t first, int64_t last) {
        for (int64_t task = first; task < last; ++task) {
          const int64_t begin = task == 0 ? 0 : ends[task - 1], end = ends[task];
          link<Index>(indices, args.padding_idx, begin, end, lists);
          write_rows<T>(args, lists, begin, end, sums + task * dim, streaming);
        }
      });
    });
  });
}

}  // namespace fastdl
