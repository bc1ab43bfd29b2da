// The product of depthwise convolution and of narrow groups: a row of results, kDepthwiseLanes
// channels side by side.
//
//   to[p][lane] = sum over from_channels j, outer taps o and row taps t of
//       from[offset[o] + (p * kStride + t) * point][channel(j, lane)] * weight[j][o][t][lane]
//
// kPoints results stay in registers. The row taps' weights do too, and each source vector, loaded
// once, is multiplied with all of those that meet it: for 7 points and 3 taps 12 loads for 21
// products, where one load each would make loads the limit. Rows whose taps are not neighbours
// (dilation, large strides) have all taps among the outer ones, and kTaps is 1. The channels of a
// narrow group are brought to their lanes after the load, by a shuffle beside the products.
// Limit: the FMA rate; 7 sums are enough to hide the latency of 5 cycles at one a cycle.
#pragma once

#include <array>

#include "common/fetch_ahead_cpu.h"
#include "common/vector_cpu.h"
#include "conv/conv_depthwise_plan.h"

namespace fastdl {
inline namespace CPU_CAPABILITY {
namespace conv_detail {

// Which source channel a lane reads: its own, or another of its group, found within the vector or
// the same for the whole vector.
enum class LaneSource : int8_t { kOwn, kWithinVector, kOnePerVector };

// The source channels of lanes: of sources as they lie at `from`.
template <LaneSource kSource>
inline Vec<float> load_lanes(const float* from, const int32_t* numbers, int64_t lane) {
  if constexpr (kSource == LaneSource::kOwn) return Vec<float>::loadu(from + lane);
  if constexpr (kSource == LaneSource::kOnePerVector) return Vec<float>(from[numbers[lane]]);
#if defined(CPU_CAPABILITY_AVX512)
  return _mm512_permutexvar_ps(_mm512_loadu_si512(numbers), _mm512_loadu_ps(from));
#elif defined(CPU_CAPABILITY_AVX2)
  const auto* const within = reinterpret_cast<const __m256i*>(numbers + lane);
  return _mm256_permutevar_ps(_mm256_loadu_ps(from + lane), _mm256_loadu_si256(within));
#else
  float lanes[kWidth<float>];
  for (int64_t i = 0; i < kWidth<float>; ++i) lanes[i] = from[numbers[lane + i]];
  return Vec<float>::loadu(lanes);
#endif
}

// Channels of a group that a shuffle within a vector reaches.
#if defined(CPU_CAPABILITY_AVX512)
inline constexpr int64_t kWithinVector = 16;
#else
inline constexpr int64_t kWithinVector = 4;
#endif

struct Slide {
  const float* from;       // of the first result, at offset 0
  const int64_t* offsets;  // of the outer taps
  int64_t outer;
  int64_t begin = -kFar, end = kFar;  // other sources of the row are zero, and not read
  const int32_t* numbers;             // [from_channels][kDepthwiseLanes]: what lanes read
  int64_t from_channels;              // 1 where lanes read their own
  int64_t point;                      // floats between the sources that kTaps and kStride count
  const float* weight;                // [from_channels][outer][kTaps][kDepthwiseLanes]
  int64_t weight_channel;             // floats from one from_channel's to the next's
  float* to;
  int64_t to_point;  // floats from one result to the next
  int64_t results = 0;
  const float* bias = nullptr;      // of the lanes, or null
  const float* residual = nullptr;  // null, or where the results go, in another tensor
  bool relu = false;
  int64_t blocks = 1;           // side by side: sources, results, bias
  int64_t weight_block = 0;     // floats from one block's weights to the next's
  FetchAhead* ahead = nullptr;  // what to fetch meanwhile
  int64_t lines = 0;            // of it with each tile

  static constexpr int64_t kFar = INT64_MAX / 2;
};

using SlideKernel = void (*)(const Slide&);

template <int kTaps, int kStride, int kPoints>
inline constexpr int kTileSources = (kPoints - 1) * kStride + kTaps;

// Adds a tile's products, one vector of lanes; `begin` and `end` count from its first source.
template <int kTaps, int kStride, int kPoints, LaneSource kSource, bool kEdges>
inline void slide_tile(const Slide& s, const float* from, const float* first_weight, int64_t begin,
                       int64_t end, int64_t lane, Vec<float> (&sums)[kPoints]) {
  using V = Vec<float>;
  for (int64_t j = 0; j < s.from_channels; ++j) {
    const int32_t* const numbers = s.numbers + j * kDepthwiseLanes;
    const float* weight = first_weight + j * s.weight_channel + lane;
    for (int64_t o = 0; o < s.outer; ++o) {
      const float* x = from + s.offsets[o];
      V weights[kTaps];
#pragma GCC unroll 8
      for (int t = 0; t < kTaps; ++t) weights[t] = V::loadu(weight + t * kDepthwiseLanes);
      weight += kTaps * kDepthwiseLanes;
#pragma GCC unroll 32
      for (int q = 0; q < kTileSources<kTaps, kStride, kPoints>; ++q) {
        if (!kEdges || (q >= begin && q < end)) {
          const V value = load_lanes<kSource>(x, numbers, lane);
#pragma GCC unroll 8
          for (int p = 0; p < kPoints; ++p) {
            const int t = q - p * kStride;
            if (t >= 0 && t < kTaps) sums[p] = at::vec::fmadd(value, weights[t], sums[p]);
          }
        }
        x += s.point;
      }
    }
  }
}

// Writes a tile of a block with what is done to its results, or a part of a tile.
template <int kPoints>
inline void store_tile(const Slide& s, int64_t first, int64_t channel, const float* tile) {
  using V = Vec<float>;
  const int64_t count = std::min<int64_t>(kPoints, s.results - first);
  for (int64_t p = 0; p < count; ++p, tile += kDepthwiseLanes) {
    const int64_t at = (first + p) * s.to_point + channel;
    for (int64_t lane = 0; lane < kDepthwiseLanes; lane += kWidth<float>) {
      V value = V::loadu(tile + lane);
      if (s.residual != nullptr) value = value + V::loadu(s.residual + at + lane);
      if (s.relu) value = at::vec::clamp_min(value, V(0.0f));
      value.store(s.to + at + lane);
    }
  }
}

// Fetches lines that are written soon: stores that wait for theirs hold up everything else. With it
// 8x32x112x112 channels_last took 1.8 instead of 2.7 ms on two cores, with streaming stores 2.4.
inline constexpr int64_t kResultsAhead = 256;  // floats; 1024 is slower

inline void prefetch_results(const float* to, int64_t floats) {
  for (int64_t i = 0; i < floats; i += 16) {
    __builtin_prefetch(to + kResultsAhead + i, /*write=*/1, /*locality=*/3);
  }
}

template <int kTaps, int kStride, int kPoints, LaneSource kSource>
void slide_row(const Slide& s) {
  using V = Vec<float>;
  constexpr int kSources = kTileSources<kTaps, kStride, kPoints>;
  const bool plain = s.residual == nullptr && !s.relu;
  for (int64_t first = 0; first < s.results; first += kPoints) {
    const int64_t begin = s.begin - first * kStride, end = s.end - first * kStride;
    const bool edges = begin > 0 || end < kSources;
    // Whole tiles of plain results go where they belong at once.
    const bool direct = plain && s.results - first >= kPoints;
    const int64_t to_point = direct ? s.to_point : kDepthwiseLanes;
    if (s.ahead != nullptr) {
      s.ahead->lines(s.lines);
      prefetch_results(s.to + first * s.to_point, kPoints * s.to_point);
    }
    for (int64_t block = 0; block < s.blocks; ++block) {
      const int64_t channel = block * kDepthwiseLanes;
      const float* const from = s.from + first * kStride * s.point + channel;
      const float* const weight = s.weight + block * s.weight_block;
      alignas(64) float tile[kPoints * kDepthwiseLanes];
      float* const to = direct ? s.to + first * s.to_point + channel : tile;
      for (int64_t lane = 0; lane < kDepthwiseLanes; lane += kWidth<float>) {
        V sums[kPoints];
        const V start = s.bias == nullptr ? V(0.0f) : V::loadu(s.bias + channel + lane);
#pragma GCC unroll 8
        for (int p = 0; p < kPoints; ++p) sums[p] = start;
        edges ? slide_tile<kTaps, kStride, kPoints, kSource, true>(s, from, weight, begin, end,
                                                                   lane, sums)
              : slide_tile<kTaps, kStride, kPoints, kSource, false>(s, from, weight, begin, end,
                                                                    lane, sums);
#pragma GCC unroll 8
        for (int p = 0; p < kPoints; ++p) sums[p].store(to + p * to_point + lane);
      }
      if (!direct) store_tile<kPoints>(s, first, channel, tile);
    }
  }
}

inline constexpr int kWidePoints = 7;  // divides the widths of the usual networks
inline constexpr int kNarrowPoints = 4;

// The kernel for neighbouring taps of a row, or null.
template <int kPoints, LaneSource kSource>
inline SlideKernel slide_kernel(int64_t taps, int64_t stride) {
  constexpr std::array<SlideKernel, 7> kNeighbours = {
      slide_row<1, 1, kPoints, kSource>, slide_row<2, 1, kPoints, kSource>,
      slide_row<3, 1, kPoints, kSource>, slide_row<4, 1, kPoints, kSource>,
      slide_row<5, 1, kPoints, kSource>, slide_row<6, 1, kPoints, kSource>,
      slide_row<7, 1, kPoints, kSource>};
  if (stride == 1 && taps >= 1 && taps <= 7) return kNeighbours[taps - 1];
  if (stride == 2 && taps == 3) return slide_row<3, 2, kPoints, kSource>;
  if (stride == 2 && taps == 5) return slide_row<5, 2, kPoints, kSource>;
  if (stride == 2 && taps == 7) return slide_row<7, 2, kPoints, kSource>;
  return nullptr;
}

template <int kPoints>
inline SlideKernel slide_kernel(int64_t taps, int64_t stride, LaneSource source) {
  switch (source) {
    case LaneSource::kOwn:
      return slide_kernel<kPoints, LaneSource::kOwn>(taps, stride);
    case LaneSource::kWithinVector:
      return slide_kernel<kPoints, LaneSource::kWithinVector>(taps, stride);
    case LaneSource::kOnePerVector:
      return slide_kernel<kPoints, LaneSource::kOnePerVector>(taps, stride);
  }
  return nullptr;
}

// How many results go to wide tiles, so that what tiles have in excess is least.
inline int64_t wide_results(int64_t results) {
  int64_t best = 0, least = INT64_MAX;
  for (int64_t wide = 0; wide < results + kWidePoints; wide += kWidePoints) {
    const int64_t left = std::max<int64_t>(0, results - wide);
    const int64_t narrow = (left + kNarrowPoints - 1) / kNarrowPoints * kNarrowPoints;
    if (wide + narrow <= least) best = wide, least = wide + narrow;
  }
  return std::min(best, results);
}

}  // namespace conv_detail
}  // namespace CPU_CAPABILITY
}  // namespace fastdl
