// The gradient of a dense convolution's weight:
//
//   sums[tap, in_channel][out_channel] = sum over pixels of input[pixel moved by tap][in_channel] *
//                                                           grad_output[pixel][out_channel]
//
// For one band of output rows at a time, grad_output is laid out in panels [panel][pixel][column]
// and the input with its padding, in its own layout (float32 without padding is read where it
// lies); then the threads share the rows of the product of conv_tile_cpu.h, whose terms are the
// pixels. A row (tap, in_channel) is an offset into the input, the pixels follow in steps of the
// stride. One sum for all threads: the result does not depend on their number, and needs no
// reduction.
//
// Reads both tensors once, and the sums once a band. Limit: the FMA rate.
#pragma once

#include "conv/conv_pack_cpu.h"
#include "conv/conv_weight.h"

namespace fastdl {
inline namespace CPU_CAPABILITY {
namespace conv_detail {

inline constexpr int64_t kPixelTerms = 128;  // of rows and of a panel that stay in L1 together

// Writes rows [channel][tap][kPanelWidth] of a weight's gradient: the way back of load_weight.
template <class T>
void store_weight(T* weight, const ConvWeightStrides& s, int64_t kernel_h, int64_t kernel_w,
                  int64_t channel, int64_t count, int64_t first_column, int64_t columns,
                  const float* rows) {
  const int64_t taps = kernel_h * kernel_w;
  const Epilogue<T> nothing{nullptr, nullptr, false};
  T* to = weight + first_column * s.out + channel * s.in;
  if (s.w == 1 && s.h == kernel_w && s.in == taps) {
    return store_pixels<T>({to, 0, 0, 1, s.out}, rows, kPanelWidth, count * taps, columns, nothing);
  }
  for (int64_t tap = 0; tap < taps; ++tap) {
    T* at = to + tap / kernel_w * s.h + tap % kernel_w * s.w;
    const float* from = rows + tap * kPanelWidth;
    if (s.in == 1 && s.out != 1) {
      store_pixels<T>({at, 0, 0, 1, s.out}, from, taps * kPanelWidth, count, columns, nothing);
      continue;
    }
    for (int64_t c = 0; c < count; ++c) {
      for (int64_t k = 0; k < columns; ++k) {
        at[c * s.in + k * s.out] = from[c * taps * kPanelWidth + k];
      }
    }
  }
}

// Calls make(panel, channel, count, rows) for all of a group's weight, in parallel, to fill rows
// [channel][tap][kPanelWidth], and stores them.
template <class T, class F>
void store_weights(const ConvBackwardWeightArgs& args, int64_t group, F&& make) {
  const ConvShape& shape = args.shape;
  const int64_t in = shape.in_channels / shape.groups, out = shape.out_channels / shape.groups;
  const int64_t panels = ceil_divide(out, kPanelWidth), parts = ceil_divide(in, kPackedChannels);
  const int64_t taps = shape.h.kernel * shape.w.kernel;
  T* weight = static_cast<T*>(args.grad_weight) + group * out * args.strides.out;
  parallel_for(0, panels * parts, 4, [&](int64_t begin, int64_t end) {
    auto* rows =
        static_cast<float*>(thread_scratch(kPackedChannels * taps * kPanelWidth * sizeof(float)));
    for (int64_t i = begin; i < end; ++i) {
      const int64_t panel = i / parts, channel = i % parts * kPackedChannels;
      const int64_t count = std::min(kPackedChannels, in - channel);
      make(panel, channel, count, rows);
      store_weight(weight, args.strides, shape.h.kernel, shape.w.kernel, channel, count,
                   panel * kPanelWidth, std::min(kPanelWidth, out - panel * kPanelWidth), rows);
    }
  });
}

// sums[row][column] += over the terms, shared by the threads: rows first, then panels.
inline void add_products(const std::vector<int64_t>& taps, int64_t run, int64_t row_step,
                         const float* from, const std::vector<int64_t>& in, const float* grads,
                         int64_t panel_stride, int64_t panels, float* sums,
                         const std::vector<int64_t>& out, bool first_band) {
  const auto rows = static_cast<int64_t>(in.size()), count = static_cast<int64_t>(taps.size());
  const int64_t row_parts = std::min(num_threads(), ceil_divide(rows, 4 * kTileRows));
  const int64_t panel_parts = std::min(panels, ceil_divide(num_threads(), row_parts));
  const int64_t pieces = ceil_divide(run, kPixelTerms), piece = ceil_divide(run, pieces);
  const int64_t together = std::max<int64_t>(1, kPixelTerms / run);
  parallel_for(0, row_parts * panel_parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t part = task % panel_parts, row_part = task / panel_parts;
      const int64_t row = rows * row_part / row_parts, row_end = rows * (row_part + 1) / row_parts;
      for (int64_t tap = 0; tap < count; tap += together) {
        for (int64_t at = 0; at < run; at += piece) {
          const Terms terms{taps.data() + tap,
                            std::min(together, count - tap),
                            std::min(piece, run - at),
                            row_step,
                            kPanelWidth,
                            run * kPanelWidth};
          for (int64_t panel = panels * part / panel_parts;
               panel < panels * (part + 1) / panel_parts; ++panel) {
            multiply_rows(row_end - row, 2, !first_band || tap + at > 0, terms,
                          from + at * row_step, in.data() + row,
                          grads + panel * panel_stride + (tap * run + at) * kPanelWidth,
                          sums + panel * kPanelWidth, out.data() + row);
          }
        }
      }
    }
  });
}

// A band's input [image][channel][row][col] (NCHW) or [image][row][col][channel] in memory: `data`
// is its element (0, 0) including the padding.
struct BandInput {
  const float* data;
  int64_t image_stride, row_stride, pixel_stride, channel_stride;
};

// Copies a row of the band's input, `channels` of them, with its padding.
template <class T>
void load_input_row(const Image<const T>& image, int64_t y, int64_t x, int64_t cols,
                    int64_t channels, const BandInput& band, float* to) {
  if (band.channel_stride == 1) {
    return load_window<T>(to, channels, image, {y, 1, x, cols}, channels);
  }
  const int64_t first = std::clamp<int64_t>(-x, 0, cols);
  const int64_t end = std::clamp<int64_t>(image.w - x, first, cols);
  const bool inside = y >= 0 && y < image.h && first < end;
  for (int64_t c = 0; c < channels; ++c, to += band.channel_stride) {
    if (!inside) {
      std::fill_n(to, cols, 0.0f);
      continue;
    }
    std::fill_n(to, first, 0.0f);
    widen_row(to + first, image.data + c * image.channel_stride + y * image.w + x + first,
              end - first);
    std::fill_n(to + end, cols - end, 0.0f);
  }
}

template <class T>
void direct_backward_weight(const ConvBackwardWeightArgs& args) {
  const ConvShape& shape = args.shape;
  const ConvAxis &h = shape.h, &w = shape.w;
  const int64_t in = shape.in_channels / shape.groups, out = shape.out_channels / shape.groups;
  const WeightSizes sizes = weight_sizes(shape, kPanelWidth);
  const int64_t panels = sizes.width / kPanelWidth;
  const Images<const T> inputs{static_cast<const T*>(args.input), shape.in_channels, h.input,
                               w.input, shape.channels_last};
  const Images<const T> grads{static_cast<const T*>(args.grad_output), shape.out_channels, h.output,
                              w.output, shape.channels_last};
  auto* workspace = static_cast<float*>(args.workspace);
  float* laid_out = workspace + sizes.input_floats;
  float* sums = laid_out + sizes.grad_floats;
  const bool in_place = std::is_same_v<T, float> && h.padding == 0 && w.padding == 0 &&
                        sizes.in_cols <= w.input &&
                        (h.output - 1) * h.stride + (h.kernel - 1) * h.dilation < h.input;

  for (int64_t group = 0; group < shape.groups; ++group) {
    const int64_t out_channel = group * out;
    for (int64_t band = 0; band < sizes.by_image * sizes.by_row; ++band) {
      const int64_t image = band / sizes.by_row * sizes.images;
      const int64_t row = band % sizes.by_row * sizes.rows;
      const int64_t images = std::min(sizes.images, shape.n - image);
      const int64_t rows = std::min(sizes.rows, h.output - row);
      const int64_t y = row * h.stride - h.padding;
      const Image<const T> first = inputs.at(image, group * in);
      BandInput input;
      if (in_place) {
        input = {reinterpret_cast<const float*>(first.data) + y * w.input * first.pixel_stride,
                 shape.in_channels * h.input * w.input, w.input * first.pixel_stride,
                 first.pixel_stride, first.channel_stride};
      } else {
        const int64_t pixel = shape.channels_last ? in : 1, plane = sizes.in_rows * sizes.in_cols;
        input = {workspace, plane * in, sizes.in_cols * pixel, pixel,
                 shape.channels_last ? 1 : plane};
      }
      // Lay out: rows of the input, then rows of grad_output.
      const int64_t in_rows = in_place ? 0 : images * sizes.in_rows;
      const int64_t panel_stride = images * rows * w.output * kPanelWidth;
      parallel_for(0, in_rows + images * rows, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          if (i < in_rows) {
            const int64_t which = i / sizes.in_rows, at = i % sizes.in_rows;
            load_input_row<T>(inputs.at(image + which, group * in), y + at, -w.padding,
                              sizes.in_cols, in, input,
                              workspace + which * input.image_stride + at * input.row_stride);
            continue;
          }
          const int64_t which = (i - in_rows) / rows, at = (i - in_rows) % rows;
          for (int64_t panel = 0; panel < panels; ++panel) {
            const int64_t channel = panel * kPanelWidth;
            const int64_t count = std::min(kPanelWidth, out - channel);
            float* to =
                laid_out + panel * panel_stride + (which * rows + at) * w.output * kPanelWidth;
            if (count < kPanelWidth) std::fill_n(to, w.output * kPanelWidth, 0.0f);
            load_window<T>(to, kPanelWidth, grads.at(image + which, out_channel + channel),
                           {row + at, 1, 0, w.output}, count);
          }
        }
      });
      std::vector<int64_t> terms, from, to;
      int64_t run = w.output;
      // Rows without a gap between them are one run.
      if (w.stride * w.output * input.pixel_stride == h.stride * input.row_stride) run *= rows;
      for (int64_t i = 0; i < images; ++i) {
        for (int64_t j = 0; j < rows * w.output / run; ++j) {
          terms.push_back(i * input.image_stride + j * h.stride * input.row_stride);
        }
      }
      for (int64_t i = 0; i < h.kernel; ++i) {
        for (int64_t j = 0; j < w.kernel; ++j) {
          for (int64_t c = 0; c < in; ++c) {
            to.push_back(static_cast<int64_t>(from.size()) * sizes.width);
            from.push_back(i * h.dilation * input.row_stride + j * w.dilation * input.pixel_stride +
                           c * input.channel_stride);
          }
        }
      }
      add_products(terms, run, w.stride * input.pixel_stride, input.data, from, laid_out,
                   panel_stride, panels, sums, to, band == 0);
    }
    const int64_t taps = h.kernel * w.kernel;
    store_weights<T>(args, group, [&](int64_t panel, int64_t channel, int64_t count, float* rows) {
      for (int64_t c = 0; c < count; ++c) {
        for (int64_t tap = 0; tap < taps; ++tap, rows += kPanelWidth) {
          std::memcpy(rows, sums + (tap * in + channel + c) * sizes.width + panel * kPanelWidth,
                      kPanelWidth * sizeof(float));
        }
      }
    });
  }
}

}  // namespace conv_detail
}  // namespace CPU_CAPABILITY
}  // namespace fastdl
