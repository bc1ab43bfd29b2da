// Gradient of max pooling: every output's gradient goes to the element that was its maximum, which
// the saved offset names; and the indices of the maxima, from the same offsets.
// NCHW with few windows an element: vectors over columns, for every tap those whose offset names
// it. Other windows: the outputs of a plane in order add to a band of input rows in the first
// cache; rows that no further window reaches are written, once. A task writes the rows of the
// planes it owns and passes over all outputs that reach them, so the sums have one order for any
// number of threads. channels_last with few windows an element: vectors over channels; each input
// element adds the gradients of the windows it lies in whose offset names it. With many windows:
// bands as above, of a block of channels. Memory: reads gradients and offsets and writes the
// input's gradient once. Floor: their bytes / copy bandwidth. 32x64x112x112 3x3 s2 p1 float32: 135
// MB, 4 ms at 34 GB/s.
#pragma once

#include <numeric>

#include "pool/pool_max_gather_cpu.h"

namespace fastdl {
inline namespace CPU_CAPABILITY {
namespace pool_detail {

constexpr int64_t kBandBytes = 16384;

// Input elements from the first of a window, in a band whose rows have `pitch` elements, by offset.
inline void fill_steps(const PoolShape& shape, int64_t pitch, int64_t inner, int32_t* steps) {
  const int64_t rows = longest_window(shape.h), cols = longest_window(shape.w);
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < cols; ++j) {
      *steps++ = static_cast<int32_t>(i * shape.h.dilation * pitch + j * shape.w.dilation * inner);
    }
  }
}

// The rows [first, last) of the gradient of one plane, or of `channels` channels of an image.
template <class T, class Offset>
class Scatter {
  using A = Accumulate<T>;

 public:
  Scatter(const MaxPoolBackwardArgs& args, bool streaming)
      : args_(args),
        shape_(args.shape),
        streaming_(streaming),
        rows_(shape_.h),
        columns_(shape_.w) {}

  void rows(int64_t outer, int64_t channel, int64_t channels, int64_t first, int64_t last) {
    const PoolAxis &h = shape_.h, &w = shape_.w;
    const int64_t inner = shape_.inner, pitch = w.input * channels;
    if (channels != channels_) prepare(channels);
    T* const dx = static_cast<T*>(args_.grad_input) + outer * h.input * w.input * inner + channel;
    const int64_t out = outer * h.output * w.output * inner + channel;
    const T* const dy = static_cast<const T*>(args_.grad_output) + out;
    const Offset* const offsets = static_cast<const Offset*>(args_.offsets) + out;
    const Cover top = cover_of(h, first), bottom = cover_of(h, last - 1);
    // Rows before the first window belong to the task too where strides leave gaps.
    int64_t band = std::min(first, first_row(top.first));
    std::fill(band_, band_ + band_rows_ * pitch, A(0));
    for (int64_t row = top.first; row <= bottom.last; ++row) {
      const int64_t from = first_row(row), to = std::min(h.input, from + reach_);
      if (to > band + band_rows_) {
        flush(dx, band, from, first, last, channels);
        band = from;
      }
      // The first window may begin before the row: the sum with a step does not.
      const int64_t start = (rows_[row].start - band) * pitch;
      const int64_t at = row * w.output * inner;
      channels == 1 ? scatter_row(dy + at, offsets + at, start)
                    : scatter_pixels(dy + at, offsets + at, start, channels);
    }
    flush(dx, band, std::max(last, band), first, last, channels);
  }

 private:
  void prepare(int64_t channels) {
    const int64_t pitch = shape_.w.input * channels;
    reach_ = (longest_window(shape_.h) - 1) * shape_.h.dilation + 1;
    const int64_t fit = kBandBytes / (pitch * static_cast<int64_t>(sizeof(A)));
    band_rows_ = std::min(std::max(fit, reach_ + shape_.h.stride), shape_.h.input);
    const int64_t band_size = round_up(band_rows_ * pitch, 16), taps = window_taps(shape_);
    band_ = static_cast<A*>(thread_scratch(band_size * sizeof(A) + taps * sizeof(int32_t)));
    steps_ = reinterpret_cast<int32_t*>(band_ + band_size);
    fill_steps(shape_, pitch, channels, steps_);
    channels_ = channels;
  }

  int64_t first_row(int64_t output) const { return std::max<int64_t>(0, rows_[output].start); }

  void scatter_row(const T* dy, const Offset* offsets, int64_t start) const {
    const PoolAxis& w = shape_.w;
    if (w.kernel > 0) {
      A* x = band_ + start - w.padding;
      for (int64_t i = 0; i < w.output; ++i, x += w.stride) {
        x[steps_[offsets[i]]] += static_cast<A>(dy[i]);
      }
    } else {
      for (int64_t i = 0; i < w.output; ++i) {
        band_[start + columns_[i].start + steps_[offsets[i]]] += static_cast<A>(dy[i]);
      }
    }
  }

  void scatter_pixels(const T* dy, const Offset* offsets, int64_t start, int64_t channels) const {
    for (int64_t i = 0; i < shape_.w.output; ++i) {
      A* const x = band_ + start + columns_[i].start * channels;
      for (int64_t c = 0; c < channels; ++c) x[steps_[offsets[c]] + c] += static_cast<A>(dy[c]);
      dy += shape_.inner, offsets += shape_.inner;
    }
  }

  // Writes the rows [band, end) that are the task's, and moves those after them to the front.
  void flush(T* dx, int64_t band, int64_t end, int64_t first, int64_t last, int64_t channels) {
    const int64_t w = shape_.w.input, pitch = w * channels;
    const int64_t stop = std::min(end, last);
    for (int64_t row = std::max(band, first); row < stop; ++row) {
      if (row >= band + band_rows_) {  // that no window reaches
        for (int64_t i = 0; i < w; ++i) {
          T* const to = dx + (row * w + i) * shape_.inner;
          std::fill(to, to + channels, T(0));
        }
        continue;
      }
      const A* const from = band_ + (row - band) * pitch;
      if (channels == 1) {
        write(from, dx + row * w, w);
      } else {
        for (int64_t i = 0; i < w; ++i) {
          write(from + i * channels, dx + (row * w + i) * shape_.inner, channels);
        }
      }
    }
    const int64_t kept = std::max<int64_t>(0, band + band_rows_ - end);
    if (end > band && kept > 0) {
      std::copy(band_ + (end - band) * pitch, band_ + band_rows_ * pitch, band_);
    }
    std::fill(band_ + kept * pitch, band_ + band_rows_ * pitch, A(0));
  }

  void write(const A* from, T* to, int64_t count) const {
    for_single_vectors<T>(count, [&](int64_t i, auto rest) {
      write_vector(to + i, load_vector(from + i, rest, A(0)), rest, streaming_);
    });
  }

  const MaxPoolBackwardArgs& args_;
  const PoolShape& shape_;
  const bool streaming_;
  const Windows rows_, columns_;
  int64_t channels_ = 0, reach_ = 0, band_rows_ = 0;  // rows of a window; of the band
  A* band_ = nullptr;
  int32_t* steps_ = nullptr;
};

// The gradient of channels_last, element by element of the input.
template <class T, class Offset>
void gather_pixels(const MaxPoolBackwardArgs& args, int64_t grain, bool streaming) {
  using A = Accumulate<T>;
  using V = Vec<T>;
  const PoolShape& shape = args.shape;
  const PoolAxis &h = shape.h, &w = shape.w;
  const int64_t inner = shape.inner, row_taps = longest_window(w);
  const T* const dy = static_cast<const T*>(args.grad_output);
  const Offset* const offsets = static_cast<const Offset*>(args.offsets);
  T* const dx = static_cast<T*>(args.grad_input);
  struct Window {
    int64_t at;  // of the output's first channel
    A offset;
  };
  const Sources rows(h), cols(w);
  const auto gather = [&](int64_t pixel, int64_t image, int64_t row, int64_t col) {
    Window windows[kFewWindows];
    int64_t count = 0;
    for (const auto& i : rows.of(row)) {
      for (const auto& j : cols.of(col)) {
        windows[count++] = {((image * h.output + i.output) * w.output + j.output) * inner,
                            static_cast<A>(i.tap * row_taps + j.tap)};
      }
    }
    for_channels<T>(inner, [&](int64_t c, auto vectors, auto rest) {
      V sums[vectors()];
      for (V& sum : sums) sum = V(A(0));
      for (int64_t k = 0; k < count; ++k) {
        const int64_t at = windows[k].at + c;
        const V number(windows[k].offset);
        for (int v = 0; v < vectors(); ++v) {
          const V grad = load_vector(dy + at + v * kWidth<T>, rest, A(0));
          const V mask = load_offsets<T>(offsets + at + v * kWidth<T>, rest) == number;
          sums[v] = sums[v] + (grad & mask);
        }
      }
      for (int v = 0; v < vectors(); ++v) {
        write_vector(dx + pixel * inner + c + v * kWidth<T>, sums[v], rest, streaming);
      }
    });
  };
  parallel_for(0, shape.outer * h.input * w.input, grain, [&](int64_t begin, int64_t end) {
    for_pixels(begin, end, h.input, w.input, gather);
    finish_writes();
  });
}

// Windows that an element lies in, at most, along an axis.
inline int64_t windows_of_element(const PoolAxis& axis) {
  if (axis.kernel > 0) {
    const int64_t step = axis.stride / std::gcd(axis.stride, axis.dilation);
    return std::min(axis.output, ceil_divide(axis.kernel, step));
  }
  return std::min(axis.output, ceil_divide(axis.output, axis.input) + 1);
}

template <class T, class Offset>
void max_backward(MaxPoolBackwardArgs args) {
  args.shape = simplified(args.shape);
  const PoolShape& shape = args.shape;
  const PoolAxis &h = shape.h, &w = shape.w;
  const int64_t inputs = shape.outer * h.input * w.input * shape.inner;
  const int64_t outputs = shape.outer * h.output * w.output * shape.inner;
  const bool past_cache =
      worth_streaming(inputs * static_cast<int64_t>(sizeof(T)) +
                      outputs * static_cast<int64_t>(sizeof(T) + sizeof(Offset)));
  constexpr int64_t channel_block = 64;
  const int64_t windows = windows_of_element(h) * windows_of_element(w);
  if (shape.inner > 1 && windows <= kFewWindows) {
    const bool streaming = past_cache && rows_are_aligned<T>(args.grad_input, shape.inner);
    const int64_t grain = std::max<int64_t>(1, kGrain / (windows * shape.inner));
    return gather_pixels<T, Offset>(args, grain, streaming);
  }
  if (shape.inner == 1 && Gather<T, Offset>::fits(shape)) {
    const bool streaming = past_cache && rows_are_aligned<T>(args.grad_input, w.input);
    const int64_t grain = std::max<int64_t>(1, kGrain / w.input);
    parallel_for(0, shape.outer * h.input, grain, [&](int64_t begin, int64_t end) {
      Gather<T, Offset> gather(args, streaming);
      while (begin < end) {
        const int64_t row = begin % h.input, count = std::min(h.input - row, end - begin);
        gather.rows(begin / h.input, row, row + count);
        begin += count;
      }
      finish_writes();
    });
    return;
  }
  const int64_t block = std::min(shape.inner, channel_block);
  const int64_t blocks = ceil_divide(shape.inner, block);
  const bool streaming =
      past_cache && rows_are_aligned<T>(args.grad_input, shape.inner == 1 ? w.input : shape.inner);
  const int64_t grain = std::max<int64_t>(1, kGrain / (w.input * block));
  parallel_for(0, shape.outer * blocks * h.input, grain, [&](int64_t begin, int64_t end) {
    Scatter<T, Offset> scatter(args, streaming);
    while (begin < end) {
      const int64_t unit = begin / h.input, row = begin % h.input;
      const int64_t count = std::min(h.input - row, end - begin);
      const int64_t channel = unit % blocks * block;
      scatter.rows(unit / blocks, channel, std::min(block, shape.inner - channel), row,
                   row + count);
      begin += count;
    }
    finish_writes();
  });
}

template <class Offset>
void max_indices(const MaxPoolIndicesArgs& args) {
  const PoolAxis &h = args.shape.h, &w = args.shape.w;
  const int64_t inner = args.shape.inner, row_taps = longest_window(w);
  const int64_t pixels = args.shape.outer * h.output * w.output;
  const Windows rows(h), cols(w);
  parallel_for(0, pixels, std::max<int64_t>(1, kGrain / inner), [&](int64_t begin, int64_t end) {
    for (int64_t pixel = begin; pixel < end; ++pixel) {
      const int64_t row = rows[pixel / w.output % h.output].start;
      const int64_t col = cols[pixel % w.output].start;
      for (int64_t at = pixel * inner; at < (pixel + 1) * inner; ++at) {
        const int64_t offset = static_cast<const Offset*>(args.offsets)[at];
        args.indices[at] =
            (row + offset / row_taps * h.dilation) * w.input + col + offset % row_taps * w.dilation;
      }
    }
  });
}

}  // namespace pool_detail
}  // namespace CPU_CAPABILITY
}  // namespace fastdl
