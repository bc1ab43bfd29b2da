// The gradient of a dense convolution's weight:
//
//   sums[tap, in_channel][out_channel] = sum over pixels of input[pixel moved by tap][in_channel] *
//                                                           grad_output[pixel][out_channel]
//
// For one band of output rows at a time, grad_output is laid out in panels [panel][pixel][column]
// and the input with its padding, in its own layout (float32 without padding is read where it
// lies); then the threads share the rows of the product of product_tile_cpu.h, whose terms are the
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

// Of a panel: few readings of the sums, and short enough sums to be accurate (a long one of 2500
// pixels has 8 times torch's error).
inline constexpr int64_t kPixelTerms = 256;

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

// Copies a row of the band's input with its padding to to[channel][col], planes plane_stride apart.
template <class T>
void load_input_row(const Image<const T>& image, int64_t y, int64_t x, int64_t cols,
                    int64_t channels, int64_t plane_stride, float* to) {
  const int64_t first = std::clamp<int64_t>(-x, 0, cols);
  const int64_t end = std::clamp<int64_t>(image.w - x, first, cols);
  const bool inside = y >= 0 && y < image.h && first < end;
  for (int64_t c = 0; c < channels; ++c) {
    float* row = to + c * plane_stride;
    std::fill_n(row, inside ? first : cols, 0.0f);
    if (inside) std::fill_n(row + end, cols - end, 0.0f);
  }
  if (!inside) return;
  const T* from = image.data + (y * image.w + x + first) * image.pixel_stride;
  if (image.channel_stride == 1) {  // the same, with pixels and channels exchanged
    transpose(to + first, plane_stride, from, image.pixel_stride, end - first, channels);
    return;
  }
  for (int64_t c = 0; c < channels; ++c) {
    widen_row(to + c * plane_stride + first, from + c * image.channel_stride, end - first);
  }
}

// A band of the batch: whole images, or output rows of one.
struct Band {
  int64_t image, images, row, rows;
};

// The band's input in planes: `data` is element (0, 0) of the first, including the padding.
struct BandInput {
  const float* data;
  int64_t image_stride, plane_stride, row_stride;
};

// Lays out a band for one group: its input where `to` is not null, and its grad_output in panels.
template <class T>
void load_band(const ConvShape& shape, const WeightSizes& sizes, const Band& band,
               const Images<const T>& inputs, const Images<const T>& grads, const BandInput& input,
               float* to, float* panels) {
  const ConvAxis &h = shape.h, &w = shape.w;
  const int64_t in = shape.in_channels / shape.groups, out = shape.out_channels / shape.groups;
  const int64_t y = band.row * h.stride - h.padding;
  const int64_t panel_count = ceil_divide(out, kPanelWidth);
  const int64_t panel_stride = band.images * band.rows * w.output * kPanelWidth;
  // Units of work: a row of the input, then some rows of a panel.
  const int64_t in_rows = to == nullptr ? 0 : band.images * sizes.in_rows;
  const int64_t together = std::min(band.rows, ceil_divide(64, w.output));
  const int64_t parts = ceil_divide(band.rows, together);
  parallel_for(0, in_rows + band.images * panel_count * parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      if (i < in_rows) {
        const int64_t image = i / sizes.in_rows, row = i % sizes.in_rows;
        load_input_row<T>(inputs.at(band.image + image, 0), y + row, -w.padding, sizes.in_cols, in,
                          input.plane_stride,
                          to + image * input.image_stride + row * input.row_stride);
        continue;
      }
      const int64_t row = (i - in_rows) % parts * together,
                    panel = (i - in_rows) / parts % panel_count;
      const int64_t image = (i - in_rows) / parts / panel_count;
      const int64_t rows = std::min(together, band.rows - row), channel = panel * kPanelWidth;
      const int64_t count = std::min(kPanelWidth, out - channel);
      float* pixels =
          panels + panel * panel_stride + (image * band.rows + row) * w.output * kPanelWidth;
      if (count < kPanelWidth) std::fill_n(pixels, rows * w.output * kPanelWidth, 0.0f);
      load_window<T>(pixels, kPanelWidth, grads.at(band.image + image, channel),
                     {band.row + row, rows, 0, w.output}, count);
    }
  });
}

template <class T>
void direct_backward_weight(const ConvBackwardWeightArgs& args, int64_t group, float* workspace) {
  const ConvShape& shape = args.shape;
  const ConvAxis &h = shape.h, &w = shape.w;
  const int64_t in = shape.in_channels / shape.groups, taps = h.kernel * w.kernel;
  const WeightSizes sizes = weight_sizes(shape, kPanelWidth);
  const int64_t out = shape.out_channels / shape.groups;
  const Images<const T> inputs{static_cast<const T*>(args.input),
                               shape.in_channels,
                               h.input,
                               w.input,
                               shape.channels_last,
                               group * in,
                               in};
  const Images<const T> grads{static_cast<const T*>(args.grad_output),
                              shape.out_channels,
                              h.output,
                              w.output,
                              shape.channels_last,
                              group * out,
                              out};
  float* panels = workspace + sizes.input_floats;
  float* sums = panels + sizes.grad_floats;
  const int64_t plane = sizes.in_rows * sizes.in_cols;
  BandInput input{workspace, plane * in, plane, sizes.in_cols};
  const bool in_place = std::is_same_v<T, float> && !shape.channels_last && h.padding == 0 &&
                        w.padding == 0 && sizes.in_cols <= w.input &&
                        (h.output - 1) * h.stride + (h.kernel - 1) * h.dilation < h.input;
  if (in_place) {
    const int64_t whole = h.input * w.input;
    input = {nullptr, shape.in_channels * whole, whole, w.input};
  }
  std::vector<int64_t> from, to;  // of each row of the sums
  for (int64_t i = 0; i < h.kernel; ++i) {
    for (int64_t j = 0; j < w.kernel; ++j) {
      for (int64_t c = 0; c < in; ++c) {
        to.push_back(static_cast<int64_t>(from.size()) * sizes.width);
        from.push_back(c * input.plane_stride + i * h.dilation * input.row_stride + j * w.dilation);
      }
    }
  }
  for (int64_t i = 0; i < sizes.by_image * sizes.by_row; ++i) {
    Band band{i / sizes.by_row * sizes.images, 0, i % sizes.by_row * sizes.rows, 0};
    band.images = std::min(sizes.images, shape.n - band.image);
    band.rows = std::min(sizes.rows, h.output - band.row);
    if constexpr (std::is_same_v<T, float>) {
      if (in_place) {
        input.data = inputs.at(band.image, 0).data + band.row * h.stride * w.input;
      }
    }
    load_band(shape, sizes, band, inputs, grads, input, in_place ? nullptr : workspace, panels);
    // The pixels of a row are a run of terms; those of all rows, where nothing lies between.
    const bool joined = w.stride == 1 && h.stride == 1 && input.row_stride == w.output;
    const int64_t run = joined ? band.rows * w.output : w.output;
    std::vector<int64_t> runs;
    for (int64_t image = 0; image < band.images; ++image) {
      for (int64_t row = 0; row < (joined ? 1 : band.rows); ++row) {
        runs.push_back(image * input.image_stride + row * h.stride * input.row_stride);
      }
    }
    add_products(runs, run, w.stride, input.data, from, panels,
                 band.images * band.rows * w.output * kPanelWidth, sizes.width / kPanelWidth, sums,
                 to, i == 0);
  }
  store_weights<T>(args, group, [&](int64_t panel, int64_t channel, int64_t count, float* rows) {
    for (int64_t c = 0; c < count; ++c) {
      for (int64_t tap = 0; tap < taps; ++tap, rows += kPanelWidth) {
        std::memcpy(rows, sums + (tap * in + channel + c) * sizes.width + panel * kPanelWidth,
                    kPanelWidth * sizeof(float));
      }
    }
  });
}

// Calls backward(group, workspace) for all groups: each by all threads, or by one of them, where
// nested loops are serial.
template <class F>
void for_groups(const ConvBackwardWeightArgs& args, int64_t workspace_floats, F&& backward) {
  const int64_t groups = args.shape.groups;
  const int64_t workspaces = weight_workspaces(args.shape, num_threads());
  auto* workspace = static_cast<float*>(args.workspace);
  parallel_for(0, workspaces, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      for (int64_t group = i; group < groups; group += workspaces) {
        backward(group, workspace + i * workspace_floats);
      }
    }
  });
}

}  // namespace conv_detail
}  // namespace CPU_CAPABILITY
}  // namespace fastdl
