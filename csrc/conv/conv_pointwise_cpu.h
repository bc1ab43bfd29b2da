// 1x1 convolution of NCHW tensors, forward and (stride 1) towards the input, without turning them:
//
//   to[row][pixel] = sum over channels of weight[row][channel] * from[channel][pixel]
//
// where pixels of all images count as one line. A task is a block of 96 of them: of its sources,
// kPanelTerms channels at a time are copied to panels of neighbouring pixels, which the product of
// product_tile_cpu.h reads from L1 while the rows of the weight pass. Sums are kept in a block of
// float32 and leave row by row with the epilogue.
//
// Reads the sources once for each kRowsOfTask rows, writes results once. Limit: the FMA rate.
#pragma once

#include "conv/conv_direct_cpu.h"

namespace fastdl {
inline namespace CPU_CAPABILITY {
namespace conv_detail {

inline constexpr int64_t kRowsOfTask = 256;
inline constexpr int64_t kRowsAtOnce = 8 * kTileRows;  // of the weight, that stay in L2
inline constexpr int64_t kLinePixels = kBlockPixels / kPanelWidth * kPanelWidth;  // at most

// Channels of a chunk of the sum: all chunks but the last have as many.
inline int64_t chunk_channels(int64_t channels) {
  return ceil_divide(channels, ceil_divide(channels, kPanelTerms));
}

// packed[group][chunk][row][channel of the chunk] of a 1x1 weight: rows that are read together are
// close.
template <class T>
void pack_rows(const ConvPackArgs& args) {
  const bool backward = args.direction == ConvDirection::kBackwardInput;
  const WeightView<T> weight(args, backward);
  const PlaneSum sum = plane_sum(args.shape, backward);
  const int64_t rows = sum.to_channels, chunk = chunk_channels(sum.from_channels);
  const int64_t chunks = ceil_divide(sum.from_channels, chunk);
  const int64_t parts = ceil_divide(rows, kRowsAtOnce);
  auto* packed = static_cast<float*>(args.packed_weight);
  parallel_for(0, sum.groups * chunks * parts, 4, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = i % parts * kRowsAtOnce, count = std::min(kRowsAtOnce, rows - row);
      const int64_t channel = i / parts % chunks * chunk, group = i / parts / chunks;
      const int64_t channels = std::min(chunk, sum.from_channels - channel);
      const T* from = weight.data + group * weight.group_stride + row * weight.column_stride +
                      channel * weight.from_stride;
      float* to = packed + (group * sum.from_channels + channel) * rows + row * channels;
      if (weight.column_stride == 1) {
        transpose(to, channels, from, weight.from_stride, channels, count);
        continue;
      }
      for (int64_t k = 0; k < count; ++k, to += channels, from += weight.column_stride) {
        if (weight.from_stride == 1) {
          widen_row(to, from, channels);
        } else {
          for (int64_t c = 0; c < channels; ++c) to[c] = from[c * weight.from_stride];
        }
      }
    }
  });
}

// Calls f(image, pixel, count, at) for the parts of [begin, begin + count) in one image each.
template <class F>
inline void for_images(int64_t begin, int64_t count, int64_t pixels, F&& f) {
  for (int64_t at = 0; at < count;) {
    const int64_t pixel = (begin + at) % pixels, many = std::min(pixels - pixel, count - at);
    f((begin + at) / pixels, pixel, many, at);
    at += many;
  }
}

// Pixels of a block, so that the thread with the most tasks has least to do.
inline int64_t pixels_of_block(int64_t all, int64_t tasks_of_block, int64_t threads) {
  int64_t best = kLinePixels, least = INT64_MAX;
  for (int64_t line = kLinePixels; line > kLinePixels / 2; line -= kPanelWidth) {
    const int64_t most = ceil_divide(ceil_divide(all, line) * tasks_of_block, threads) * line;
    if (most < least) {
      least = most;
      best = line;
    }
  }
  return best;
}

template <class T>
void pointwise_sum(const PlaneSum& sum, const T* from, const float* weight, T* to,
                   const Epilogue<T>& epilogue) {
  const int64_t pixels = sum.h.to * sum.w.to, all = sum.n * pixels, plane = sum.h.from * sum.w.from;
  const int64_t parts = ceil_divide(sum.to_channels, kRowsOfTask);
  const int64_t chunk = chunk_channels(sum.from_channels);
  const int64_t line = pixels_of_block(all, parts * sum.groups, num_threads());
  const int64_t blocks = ceil_divide(all, line);
  const int64_t step_h = sum.h.from_step, step_w = sum.w.from_step;
  // to[channel][kPanelWidth] for each panel of a block's sources.
  const auto load = [&](int64_t block, int64_t count, int64_t first_channel, int64_t channels,
                        float* to) {
    for_images(
        block * line, count, pixels, [&](int64_t image, int64_t pixel, int64_t many, int64_t at) {
          const T* image_from =
              from + (image * sum.groups * sum.from_channels + first_channel) * plane;
          for (int64_t done = 0; done < many;) {
            const int64_t i = at + done, lane = i % kPanelWidth;
            const int64_t width = std::min(kPanelWidth - lane, many - done);
            float* panel = to + i / kPanelWidth * kPanelWidth * channels + lane;
            const int64_t p = pixel + done;
            if (step_h == 1 && step_w == 1 && width == kPanelWidth) {
              for (int64_t c = 0; c < channels; ++c) {
                for (int64_t k = 0; k < kPanelWidth; k += kLaneCount) {
                  store_vector(panel + c * kPanelWidth + k,
                               load_vector(image_from + c * plane + p + k));
                }
              }
            } else if (step_h == 1 && step_w == 1) {
              for (int64_t c = 0; c < channels; ++c) {
                widen_row(panel + c * kPanelWidth, image_from + c * plane + p, width);
              }
            } else {
              int64_t offsets[kPanelWidth];
              for (int64_t k = 0; k < width; ++k) {
                offsets[k] = (p + k) / sum.w.to * step_h * sum.w.from + (p + k) % sum.w.to * step_w;
              }
              for (int64_t c = 0; c < channels; ++c) {
                for (int64_t k = 0; k < width; ++k) {
                  panel[c * kPanelWidth + k] = image_from[c * plane + offsets[k]];
                }
              }
            }
            done += width;
          }
        });
  };
  // The sources of a task from a channel on, of its first image.
  const auto sources_of = [&](int64_t task, int64_t channel) {
    const int64_t group = task / parts % sum.groups, block = task / parts / sum.groups;
    const int64_t image = block * line / pixels, pixel = block * line % pixels;
    if (image >= sum.n) return FetchAhead();
    const int64_t first = (image * sum.groups + group) * sum.from_channels + channel;
    const int64_t begin = pixel / sum.w.to * step_h * sum.w.from + pixel % sum.w.to * step_w;
    const int64_t length = std::min(line, pixels - pixel) * step_h * step_w;
    return FetchAhead{reinterpret_cast<const char*>(from + first * plane + begin),
                      length * int64_t{sizeof(T)}, plane * int64_t{sizeof(T)},
                      std::min(chunk, sum.from_channels - channel)};
  };
  parallel_for(0, blocks * sum.groups * parts, 1, [&](int64_t begin, int64_t end) {
    auto* panels = static_cast<float*>(
        thread_scratch((kPanelTerms + kRowsOfTask) * kLinePixels * sizeof(float)));
    float* results = panels + kPanelTerms * kLinePixels;
    const int64_t start = 0;
    int64_t in[kRowsAtOnce], out[kRowsAtOnce];
    for (int64_t i = 0; i < kRowsAtOnce; ++i) out[i] = i * line;
    for (int64_t task = begin; task < end; ++task) {
      const int64_t part = task % parts, group = task / parts % sum.groups,
                    block = task / parts / sum.groups;
      const int64_t count = std::min(line, all - block * line);
      const int64_t row = part * kRowsOfTask, rows = std::min(kRowsOfTask, sum.to_channels - row);
      const float* group_weight = weight + group * sum.to_channels * sum.from_channels;
      for (int64_t c = 0; c < sum.from_channels; c += chunk) {
        const int64_t channels = std::min(chunk, sum.from_channels - c);
        const bool more = c + chunk < sum.from_channels;
        FetchAhead ahead = more ? sources_of(task, c + chunk) : sources_of(task + 1, 0);
        const int64_t tiles = ceil_divide(rows, kTileRows) * ceil_divide(line, kPanelWidth);
        const int64_t lines = ceil_divide(ahead.lines_left(), tiles);
        for (int64_t i = 0; i < kRowsAtOnce; ++i) in[i] = i * channels;
        load(block, count, group * sum.from_channels + c, channels, panels);
        for (int64_t r = 0; r < rows; r += kRowsAtOnce) {
          for (int64_t p = 0; p < count; p += kPanelWidth) {
            const Terms terms{&start, 1, channels, 1, kPanelWidth, 0};
            multiply_rows(std::min(kRowsAtOnce, rows - r), count - p > kLaneCount ? 2 : 1, c > 0,
                          terms, group_weight + c * sum.to_channels + (row + r) * channels, in,
                          panels + p * channels, results + r * line + p, out, &ahead, lines);
          }
        }
      }
      for_images(
          block * line, count, pixels, [&](int64_t image, int64_t pixel, int64_t many, int64_t at) {
            for (int64_t r = 0; r < rows; ++r) {
              const int64_t channel = group * sum.to_channels + row + r;
              const int64_t first =
                  (image * sum.groups * sum.to_channels + channel) * pixels + pixel;
              const Vec<T> bias(
                  epilogue.bias != nullptr ? static_cast<float>(epilogue.bias[channel]) : 0.0f);
              for_single_vectors<T>(many, [&](int64_t i, auto n) {
                const Vec<T> value = load_vector(results + r * line + at + i, n, 0.0f) + bias;
                store_vector(to + first + i, epilogue.finish(value, first + i, n), n);
              });
            }
          });
    }
  });
}

}  // namespace conv_detail
}  // namespace CPU_CAPABILITY
}  // namespace fastdl
