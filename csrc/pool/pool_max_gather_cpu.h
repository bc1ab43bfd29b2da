// The gradient of max pooling of NCHW where few windows have an element: pool_max_backward_cpu.h.
#pragma once

#include "pool/pool_cpu.h"

namespace fastdl {
inline namespace CPU_CAPABILITY {
namespace pool_detail {

constexpr int64_t kFewWindows = 16;  // with an element; more cost less the other way round

// Offsets as numbers to compare with: kWidth<T> of them.
template <class T, class Offset, class Count>
inline Vec<T> load_offsets(const Offset* offsets, Count count) {
  using A = Accumulate<T>;
#if defined(CPU_CAPABILITY_AVX512)
  if constexpr (std::is_same_v<A, float> && sizeof(Offset) == 1 && std::is_same_v<Count, Whole>) {
    return _mm512_cvtepi32_ps(
        _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(offsets))));
  }
#elif defined(CPU_CAPABILITY_AVX2)
  if constexpr (std::is_same_v<A, float> && sizeof(Offset) == 1 && std::is_same_v<Count, Whole>) {
    return _mm256_cvtepi32_ps(
        _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(offsets))));
  }
#endif
  alignas(64) A numbers[kWidth<T>] = {};
  if constexpr (std::is_same_v<Count, Whole>) {
    for (int64_t i = 0; i < kWidth<T>; ++i) numbers[i] = static_cast<A>(offsets[i]);
  } else {
    for (int64_t i = 0; i < count; ++i) numbers[i] = static_cast<A>(offsets[i]);
  }
  return Vec<T>::loadu(numbers);
}

// The rows [first, last) of the gradient of one plane for strides 1 and 2 and few windows an
// element: of some output rows the gradients and offsets lie in scratch memory between zeros, and
// every tap adds those whose offset names it to the even or odd elements, as vectors. (Some rows at
// a time, as a shifted load of what has just been stored would wait for the stores.)
template <class T, class Offset>
class Gather {
  using A = Accumulate<T>;
  using V = Vec<T>;

 public:
  Gather(const MaxPoolBackwardArgs& args, bool streaming)
      : args_(args), shape_(args.shape), streaming_(streaming) {
    const PoolAxis &h = shape_.h, &w = shape_.w;
    margin_ = round_up((w.kernel - 1) * w.dilation + 1, 16);
    size_ = round_up(margin_ + std::max(w.output, w.input + w.padding) + 4 * kWidth<T>, 16);
    ahead_ = std::clamp<int64_t>(512 / w.output, 1, h.output);
    slots_ = static_cast<int64_t>(
        std::bit_ceil(static_cast<uint64_t>(ceil_divide(h.kernel, h.stride) + ahead_)));
    grads_ = static_cast<A*>(thread_scratch(2 * slots_ * size_ * sizeof(A)));
    offsets_ = grads_ + slots_ * size_;
    std::fill(grads_, offsets_ + slots_ * size_, A(0));
  }

  static bool fits(const PoolShape& shape) {
    const PoolAxis &h = shape.h, &w = shape.w;
    return w.kernel > 0 && w.stride <= 2 && w.output > 1 && h.kernel > 0 && h.dilation == 1 &&
           w.kernel * ceil_divide(h.kernel, h.stride) <= kFewWindows;
  }

  void rows(int64_t plane, int64_t first, int64_t last) {
    const PoolAxis &h = shape_.h, &w = shape_.w;
    T* const dx = static_cast<T*>(args_.grad_input) + plane * h.input * w.input;
    const int64_t needed = cover_of(h, last - 1).last + 1;
    int64_t ready = cover_of(h, first).first;  // output rows before it are in scratch memory
    for (int64_t row = first; row < last; ++row) {
      const Cover cover = cover_of(h, row);
      if (cover.last >= ready) {
        ready = std::max(ready, cover.first);
        const int64_t stop = std::min(needed, std::max(cover.last + 1, ready + ahead_));
        for (; ready < stop; ++ready) load_row(plane * h.output + ready, ready & (slots_ - 1));
      }
      w.stride == 1 ? sum_row<1>(dx + row * w.input, row, cover)
                    : sum_row<2>(dx + row * w.input, row, cover);
    }
  }

 private:
  void load_row(int64_t row, int64_t slot) {
    const int64_t at = row * shape_.w.output, begin = slot * size_ + margin_;
    const T* const dy = static_cast<const T*>(args_.grad_output) + at;
    const Offset* const offsets = static_cast<const Offset*>(args_.offsets) + at;
    for_single_vectors<T>(shape_.w.output, [&](int64_t i, auto rest) {
      store_vector(grads_ + begin + i, load_vector(dy + i, rest, A(0)), rest);
      store_vector(offsets_ + begin + i, load_offsets<T>(offsets + i, rest), rest);
    });
  }

  // A tap of an output row: where its gradients and offsets for element 0 or 1 lie, its number.
  struct Tap {
    int64_t at;
    A number;
  };
  struct Taps {
    Tap taps[kFewWindows];
    int count = 0;
  };

  // The taps that even (`odd` 0) or odd elements of a row are of, or all elements.
  template <int kStride>
  Taps taps_of_row(int64_t row, const Cover& cover, int64_t odd) const {
    const PoolAxis &h = shape_.h, &w = shape_.w;
    Taps found;
    for (int64_t output = cover.first; output <= cover.last; ++output) {
      const int64_t begin = (output & (slots_ - 1)) * size_ + margin_;
      const int64_t tap = (row + h.padding - output * h.stride) * w.kernel;
      for (int64_t t = w.kernel - 1; t >= 0; --t) {
        // Element i is tap t of the output at (i + padding - t * dilation) / stride.
        const int64_t shift = odd + w.padding - t * w.dilation;
        if (shift % kStride != 0) continue;
        found.taps[found.count++] = {begin + shift / kStride, static_cast<A>(tap + t)};
      }
    }
    return found;
  }

  // What a pass over a row adds up: kCount taps, so that they stay in registers, or -1 for any
  // number.
  template <int kCount>
  struct Sum {
    static constexpr int kMost = kCount < 0 ? kFewWindows : kCount == 0 ? 1 : kCount;
    const A *grads[kMost], *offsets[kMost];
    V numbers[kMost];
    int count;

    Sum(const Gather& gather, const Taps& taps) : count(taps.count) {
      for (int t = 0; t < (kCount < 0 ? count : kCount); ++t) {
        grads[t] = gather.grads_ + taps.taps[t].at;
        offsets[t] = gather.offsets_ + taps.taps[t].at;
        numbers[t] = V(taps.taps[t].number);
      }
    }
    V at(int64_t i) const {
      V sum(A(0));
      for (int t = 0; t < (kCount < 0 ? count : kCount); ++t) {
        const V mask = load_vector(offsets[t] + i) == numbers[t];
        sum = sum + (load_vector(grads[t] + i) & mask);
      }
      return sum;
    }
  };

  template <int kEven, int kOdd>
  void sum_even_and_odd(T* dx, const Taps& even_taps, const Taps& odd_taps) const {
    constexpr int64_t width = kWidth<T>;
    const Sum<kEven> even(*this, even_taps);
    const Sum<kOdd> odd(*this, odd_taps);
    const int64_t size = shape_.w.input;
    int64_t i = 0;
    for (; i + 2 * width <= size; i += 2 * width) {
      const auto [low, high] = at::vec::interleave2(even.at(i / 2), odd.at(i / 2));
      write_vector(dx + i, low, kWhole, streaming_);
      write_vector(dx + i + width, high, kWhole, streaming_);
    }
    if (i == size) return;
    const auto [low, high] = at::vec::interleave2(even.at(i / 2), odd.at(i / 2));
    write(dx + i, low, size - i);
    if (size - i > width) write(dx + i + width, high, size - i - width);
  }

  template <int kStride>
  void sum_row(T* dx, int64_t row, const Cover& cover) const {
    const Taps even = taps_of_row<kStride>(row, cover, 0);
    if constexpr (kStride == 1) {
      const Sum<-1> all(*this, even);
      for (int64_t i = 0; i < shape_.w.input; i += kWidth<T>) {
        write(dx + i, all.at(i), shape_.w.input - i);
      }
    } else {
      const Taps odd = taps_of_row<kStride>(row, cover, 1);
      const auto counts = std::pair(even.count, odd.count);
      if (counts == std::pair(1, 1)) return sum_even_and_odd<1, 1>(dx, even, odd);  // 2x2
      if (counts == std::pair(1, 2)) return sum_even_and_odd<1, 2>(dx, even, odd);  // 3x3
      if (counts == std::pair(2, 4)) return sum_even_and_odd<2, 4>(dx, even, odd);
      if (counts == std::pair(2, 1)) return sum_even_and_odd<2, 1>(dx, even, odd);  // unpadded
      if (counts == std::pair(4, 2)) return sum_even_and_odd<4, 2>(dx, even, odd);
      sum_even_and_odd<-1, -1>(dx, even, odd);
    }
  }

  void write(T* to, V value, int64_t left) const {
    if (left >= kWidth<T>) return write_vector(to, value, kWhole, streaming_);
    store_vector(to, value, left);
  }

  const MaxPoolBackwardArgs& args_;
  const PoolShape& shape_;
  const bool streaming_;
  // zeros before a row in scratch memory; its size; rows there; rows that are loaded at a time
  int64_t margin_, size_, slots_, ahead_;
  A *grads_, *offsets_;
};

}  // namespace pool_detail
}  // namespace CPU_CAPABILITY
}  // namespace fastdl
