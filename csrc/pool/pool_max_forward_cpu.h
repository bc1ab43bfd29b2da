// Maximum of each window and, if wanted, its offset in the window.
//   The rule is torch's: in the order of rows, the first of equal maxima; a NaN is taken whatever
//   was before it, so that the last one stays. A window of only -inf has its first element inside.
// NCHW: every input row is laid out in scratch memory so that each tap is a contiguous vector over
// neighbouring outputs (pool_cpu.h), with -inf where the windows leave the input; a pass over the
// taps pools it along the width, some rows at a time to fill vectors. These rows stay in the first
// cache in a band, from which every output row takes the rows of its windows. Offsets are carried
// as numbers of the accumulation type next to the values, exact up to 2^24. channels_last: vectors
// over channels, all taps of a window for four of them at a time. Memory: reads the input once,
// writes values (and an offset of 1 byte). Floor: their bytes / copy bandwidth. 32x64x112x112 3x3
// s2 p1 float32: 128 MB, 4 ms at 34 GB/s.
#pragma once

#include "pool/pool_cpu.h"

namespace fastdl {
inline namespace CPU_CAPABILITY {
namespace pool_detail {

template <class V>
inline V replaces(V value, V best) {  // as a mask
  return (value > best) | value.isnan();
}

// Equal numbers, also zeros of different sign: the earlier one stays.
template <class V>
inline V larger(V value, V best) {
  return at::vec::maximum(value, best);
}

template <class A>
inline void write_offsets(const A* from, void* to, int64_t at, int64_t count, bool bytes) {
  if (bytes) {
    uint8_t* out = static_cast<uint8_t*>(to) + at;
#if defined(CPU_CAPABILITY_AVX512) || defined(CPU_CAPABILITY_AVX2)
    if constexpr (std::is_same_v<A, float>) {
      const auto eight = [&](int64_t i) {  // as 16 bits
        return _mm_packus_epi32(_mm_cvttps_epi32(_mm_loadu_ps(from + i)),
                                _mm_cvttps_epi32(_mm_loadu_ps(from + i + 4)));
      };
      for (; count >= 16; count -= 16, from += 16, out += 16) {
        _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm_packus_epi16(eight(0), eight(8)));
      }
    }
#endif
    for (int64_t i = 0; i < count; ++i)
      out[i] = static_cast<uint8_t>(static_cast<int32_t>(from[i]));
  } else {
    int32_t* const out = static_cast<int32_t*>(to) + at;
    for (int64_t i = 0; i < count; ++i) out[i] = static_cast<int32_t>(from[i]);
  }
}

// The maximum of a row's part and the position of the one that counts, for windows of many taps.
template <class T>
void pool_wide_window(const T* x, int64_t count, int64_t step, Accumulate<T>& value,
                      Accumulate<T>& position) {
  using A = Accumulate<T>;
  using V = Vec<T>;
  constexpr A lowest = -std::numeric_limits<A>::infinity();
  A best = lowest;
  int64_t at = 0;
  if (step == 1) {
    V lanes(lowest);
    for_single_vectors<T>(count, [&](int64_t i, auto rest) {
      lanes = larger(load_vector(x + i, rest, lowest), lanes);
    });
    best = at::vec::vec_reduce_all([](V& a, V& b) { return larger(a, b); }, lanes);
    if (best != best) {
      for (at = count - 1; static_cast<A>(x[at]) == static_cast<A>(x[at]);) --at;
    } else {
      while (static_cast<A>(x[at]) != best) ++at;
    }
    best = static_cast<A>(x[at]);
  } else {
    for (int64_t i = 0; i < count; ++i) {
      const A each = static_cast<A>(x[i * step]);
      if (each > best || each != each) best = each, at = i;
    }
  }
  value = best;
  position = static_cast<A>(at);
}

// The rows of NCHW that a task has.
template <class T>
class PlanePool {
  using A = Accumulate<T>;
  using V = Vec<T>;
  static constexpr int64_t kManyTaps = 64;
  static constexpr A kLowest = -std::numeric_limits<A>::infinity();

 public:
  PlanePool(const MaxPoolForwardArgs& args, const PoolShape& shape, bool streaming)
      : args_(args), shape_(shape), streaming_(streaming), rows_(shape.h) {}

  void rows(int64_t plane, int64_t block, int64_t first, int64_t last) {
    const PoolAxis &h = shape_.h, &w = shape_.w;
    const Columns columns = Columns::block(w, block);
    if (block != block_) prepare(columns);
    block_ = block;
    const T* const x = static_cast<const T*>(args_.input) + plane * h.input * w.input;
    const Window final = rows_[last - 1];
    const int64_t needed = final.start + (final.end - 1) * h.dilation + 1;
    int64_t band = 0, band_end = 0;  // rows of the input in the band
    for (int64_t row = first; row < last; ++row) {
      const Window window = rows_[row];
      const int64_t from = std::max<int64_t>(0, window.start);
      const int64_t to = window.start + (window.end - 1) * h.dilation + 1;
      if (to > band_end) {
        keep_rows(columns.pitch, from - band, std::max<int64_t>(0, band_end - from));
        band = from;
        band_end = std::max(band_end, from);
        while (band_end < to) {
          const int64_t count = std::min(group_, std::max(needed, to) - band_end);
          pool_rows(columns, x + band_end * w.input, count, band_end - band);
          band_end += count;
        }
      }
      const int64_t at = (plane * h.output + row) * w.output + columns.begin;
      const int64_t band_row = window.start + window.first * h.dilation - band;
      args_.offsets == nullptr ? combine_rows<false>(columns, window, band_row, at)
                               : combine_rows<true>(columns, window, band_row, at);
    }
  }

 private:
  // Cuts the scratch memory, and fills what no row overwrites.
  void prepare(const Columns& columns) {
    const PoolAxis &h = shape_.h, &w = shape_.w;
    const int64_t pitch = columns.pitch, width = kWidth<T>;
    wide_ = columns.taps == Taps::kGathered && columns.phases() > kManyTaps;
    const int64_t phases = wide_ ? 0 : columns.phases();
    group_ = std::clamp<int64_t>(4096 / ((phases + 2) * pitch), 1, h.input);
    size_ = round_up(group_ * pitch + width, 16) + 16;
    const int64_t reach = (longest_window(h) - 1) * h.dilation + 1;
    const int64_t band_size = round_up((std::min(reach, h.input) + group_) * pitch + width, 16);
    // phases, first valid taps, band of values, band of offsets, offsets of a row, a wide row
    const int64_t total = phases * size_ + size_ + 2 * band_size + 2 * round_up(pitch + width, 16);
    phase_ = static_cast<A*>(thread_scratch(total * sizeof(A)));
    first_tap_ = phase_ + phases * size_;
    values_ = first_tap_ + size_;
    offsets_ = values_ + band_size;
    offset_row_ = offsets_ + band_size;
    std::fill(phase_, first_tap_, kLowest);
    std::fill(first_tap_, first_tap_ + size_, A(0));
    std::fill(values_, values_ + 2 * band_size, A(0));
    columns_.emplace(w, columns.begin, columns.end);
    for (int64_t i = 0; i < columns.count(); ++i) {
      const int64_t first = (*columns_)[columns.begin + i].first;
      if (first == 0) break;
      for (int64_t g = 0; g < group_; ++g) first_tap_[g * pitch + i] = static_cast<A>(first);
    }
  }

  void keep_rows(int64_t pitch, int64_t from, int64_t count) {
    if (count == 0 || from == 0) return;
    std::copy(values_ + from * pitch, values_ + (from + count) * pitch, values_);
    std::copy(offsets_ + from * pitch, offsets_ + (from + count) * pitch, offsets_);
  }

  // Pools `count` rows along the width, into rows of the band from `band_row` on.
  void pool_rows(const Columns& columns, const T* x, int64_t count, int64_t band_row) {
    const PoolAxis& w = shape_.w;
    const int64_t pitch = columns.pitch;
    A* const values = values_ + band_row * pitch;
    A* const offsets = offsets_ + band_row * pitch;
    if (wide_) return pool_wide_rows(columns, x, count, values, offsets);
    for (int64_t g = 0; g < count; ++g, x += w.input) {
      if (columns.taps == Taps::kGathered) {
        gather(columns, x, phase_ + g * pitch);
      } else {
        columns.lay_out<T>(phase_ + g * pitch, size_,
                           [&](int64_t i, auto rest) { return load_vector(x + i, rest, A(0)); });
      }
    }
    const int64_t end = count * pitch;
    args_.offsets == nullptr ? pool_taps<false>(columns, end, values, offsets)
                             : pool_taps<true>(columns, end, values, offsets);
  }

  // The maxima of elements [0, end) of the phases over the taps along the width
  template <bool kOffsets>
  void pool_taps(const Columns& columns, int64_t end, A* values, A* offsets) const {
    const int64_t taps = longest_window(shape_.w);
    for (int64_t i = 0; i < end; i += kWidth<T>) {
      V best = load_vector(phase_ + i), offset = kOffsets ? load_vector(first_tap_ + i) : V(0);
      for (int64_t t = 1; t < taps; ++t) {
        const V value = load_vector(phase_ + columns.tap_at(t, size_) + i);
        if constexpr (kOffsets) {
          const V mask = replaces(value, best);
          best = V::blendv(best, value, mask);
          offset = V::blendv(offset, V(static_cast<A>(t)), mask);
        } else {
          best = larger(value, best);
        }
      }
      store_vector(values + i, best);
      if (kOffsets) store_vector(offsets + i, offset);
    }
  }

  void gather(const Columns& columns, const T* x, A* phase) const {
    for (int64_t i = 0; i < columns.count(); ++i) {
      const Window window = (*columns_)[columns.begin + i];
      const T* from = x + window.start;
      A* to = phase + window.first * size_ + i;
      for (int64_t t = window.first; t < window.end; ++t, to += size_) {
        *to = static_cast<A>(from[t * shape_.w.dilation]);
      }
    }
  }

  void pool_wide_rows(const Columns& columns, const T* x, int64_t count, A* values, A* offsets) {
    for (int64_t g = 0; g < count; ++g, x += shape_.w.input) {
      for (int64_t i = 0; i < columns.count(); ++i) {
        const Window window = (*columns_)[columns.begin + i];
        const int64_t at = g * columns.pitch + i, d = shape_.w.dilation;
        pool_wide_window(x + window.start + window.first * d, window.count(), d, values[at],
                         offsets[at]);
        offsets[at] += static_cast<A>(window.first);
      }
    }
  }

  // The maxima over the rows of a window that lie in the band from `band_row` on.
  template <bool kOffsets>
  void combine_rows(const Columns& columns, const Window& window, int64_t band_row, int64_t at) {
    const int64_t step = shape_.h.dilation * columns.pitch;
    const A row_taps = static_cast<A>(longest_window(shape_.w));
    const A *const values = values_ + band_row * columns.pitch, *const offsets =
                                                                    offsets_ +
                                                                    band_row * columns.pitch;
    T* const output = static_cast<T*>(args_.output) + at;
    for_single_vectors<T>(columns.count(), [&](int64_t i, auto count) {
      V best = load_vector(values + i);
      V offset = V(0);
      if (kOffsets) offset = load_vector(offsets + i) + V(static_cast<A>(window.first) * row_taps);
      for (int64_t t = 1; t < window.count(); ++t) {
        const V value = load_vector(values + t * step + i);
        if constexpr (kOffsets) {
          const V mask = replaces(value, best);
          const V base(static_cast<A>(window.first + t) * row_taps);
          best = V::blendv(best, value, mask);
          offset = V::blendv(offset, load_vector(offsets + t * step + i) + base, mask);
        } else {
          best = larger(value, best);
        }
      }
      write_vector(output + i, best, count, streaming_);
      if (kOffsets) store_vector(offset_row_ + i, offset);
    });
    if (kOffsets) {
      write_offsets(offset_row_, args_.offsets, at, columns.count(), has_byte_offsets(args_.shape));
    }
  }

  const MaxPoolForwardArgs& args_;
  const PoolShape& shape_;
  const bool streaming_;
  int64_t block_ = -1;
  bool wide_ = false;
  int64_t group_ = 0, size_ = 0;  // rows that are pooled at a time; elements of a phase
  A *phase_ = nullptr, *first_tap_ = nullptr, *values_ = nullptr, *offsets_ = nullptr,
    *offset_row_ = nullptr;
  const Windows rows_;
  std::optional<Windows> columns_;
};

// The maxima of one window over kVectors vectors of channels.
template <class T, bool kOffsets, int kVectors, class Count>
void pool_channels(const T* x, T* y, void* offsets, int64_t at, const PoolShape& shape,
                   const Window& rows, const Window& cols, Count count, bool streaming) {
  using A = Accumulate<T>;
  using V = Vec<T>;
  const int64_t row_taps = longest_window(shape.w);
  V best[kVectors], offset[kVectors];
  // Every window has an element: the first is taken whatever it is.
  const int64_t first = (rows.start + rows.first * shape.h.dilation) * shape.w.input + cols.start +
                        cols.first * shape.w.dilation;
  for (int k = 0; k < kVectors; ++k) {
    best[k] = load_vector(x + first * shape.inner + k * kWidth<T>, count, A(0));
    offset[k] = V(static_cast<A>(rows.first * row_taps + cols.first));
  }
  for (int64_t i = rows.first; i < rows.end; ++i) {
    const int64_t row = (rows.start + i * shape.h.dilation) * shape.w.input + cols.start;
    for (int64_t j = cols.first + (i == rows.first); j < cols.end; ++j) {
      const T* const tap = x + (row + j * shape.w.dilation) * shape.inner;
      const V number(static_cast<A>(i * row_taps + j));
      for (int k = 0; k < kVectors; ++k) {
        const V value = load_vector(tap + k * kWidth<T>, count, A(0));
        prefetch(tap + k * kWidth<T> + kAhead<T>);
        if constexpr (kOffsets) {
          const V mask = replaces(value, best[k]);
          best[k] = V::blendv(best[k], value, mask);
          offset[k] = V::blendv(offset[k], number, mask);
        } else {
          best[k] = larger(value, best[k]);
        }
      }
    }
  }
  for (int k = 0; k < kVectors; ++k) {
    write_vector(y + at + k * kWidth<T>, best[k], count, streaming);
  }
  if constexpr (kOffsets) {
    alignas(64) A numbers[kVectors * kWidth<T>];
    for (int k = 0; k < kVectors; ++k) store_vector(numbers + k * kWidth<T>, offset[k]);
    if constexpr (std::is_same_v<Count, Whole>) {
      write_offsets(numbers, offsets, at, kVectors * kWidth<T>, has_byte_offsets(shape));
    } else {
      write_offsets(numbers, offsets, at, count, has_byte_offsets(shape));
    }
  }
}

template <class T>
void pool_pixels(const MaxPoolForwardArgs& args, const PoolShape& shape, bool streaming) {
  const PoolAxis &h = shape.h, &w = shape.w;
  constexpr int64_t width = kWidth<T>;
  const Windows all_rows(h), all_cols(w);
  const auto pool_pixel = [&](int64_t pixel, int64_t image, int64_t row, int64_t col) {
    const Window rows = all_rows[row], cols = all_cols[col];
    const T* const x = static_cast<const T*>(args.input) + image * h.input * w.input * shape.inner;
    const auto pool = [&]<int vectors>(int64_t c, auto count) {
      constexpr auto with = pool_channels<T, true, vectors, decltype(count)>;
      constexpr auto without = pool_channels<T, false, vectors, decltype(count)>;
      (args.offsets != nullptr ? with : without)(x + c, static_cast<T*>(args.output), args.offsets,
                                                 pixel * shape.inner + c, shape, rows, cols, count,
                                                 streaming);
    };
    int64_t c = 0;
    for (; c + 4 * width <= shape.inner; c += 4 * width) pool.template operator()<4>(c, kWhole);
    for (; c + width <= shape.inner; c += width) pool.template operator()<1>(c, kWhole);
    if (c < shape.inner) pool.template operator()<1>(c, shape.inner - c);
  };
  const int64_t grain = std::max<int64_t>(1, kGrain / (window_taps(shape) * shape.inner));
  parallel_for(0, shape.outer * h.output * w.output, grain, [&](int64_t begin, int64_t end) {
    for_pixels(begin, end, h.output, w.output, pool_pixel);
    finish_writes();
  });
}

template <class T>
void max_forward(const MaxPoolForwardArgs& args) {
  const PoolShape shape = simplified(args.shape);
  const int64_t outputs = shape.outer * shape.h.output * shape.w.output * shape.inner;
  const bool past_cache = worth_streaming(outputs * static_cast<int64_t>(sizeof(T)));
  if (shape.inner > 1) {
    const bool streaming = past_cache && rows_are_aligned<T>(args.output, shape.inner);
    return pool_pixels<T>(args, shape, streaming);
  }
  const bool streaming = past_cache && rows_are_aligned<T>(args.output, shape.w.output);
  const int64_t row_cost = window_taps(shape) * std::min(shape.w.output, Columns::kMost);
  parallel_for(0, shape.outer * Columns::blocks(shape.w) * shape.h.output,
               std::max<int64_t>(1, kGrain / row_cost), [&](int64_t begin, int64_t end) {
                 PlanePool<T> pool(args, shape, streaming);
                 for_rows(shape, begin, end,
                          [&](int64_t plane, int64_t block, int64_t first, int64_t last) {
                            pool.rows(plane, block, first, last);
                          });
                 finish_writes();
               });
}

}  // namespace pool_detail
}  // namespace CPU_CAPABILITY
}  // namespace fastdl
