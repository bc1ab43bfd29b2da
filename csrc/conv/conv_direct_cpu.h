// Dense convolution without copies of its patches: forward, and the gradient of the input.
//
// A task is a block of result pixels and some panels of their channels. Its source window is laid
// out once as [row][col][channel] with its padding (channels_last float32 without padding is read
// where it lies), so that the terms of an output pixel and tap are contiguous and the product of
// product_tile_cpu.h reads them in place: taps are offsets, strides are distances of rows. Sums run
// in chunks of kPanelTerms terms, whose panel stays in L1 while all pixels of the block pass; they
// are kept in a block of float32 that stays in L2, and leave through store_pixels with the
// epilogue.
//
// Reads the source window of each block, the weight once a block, and writes the results once.
// Limit: the FMA rate, 2 * results * terms flops.
#pragma once

#include "common/parallel.h"
#include "conv/conv_pack_cpu.h"
#include "conv/conv_strip_cpu.h"

namespace fastdl {
inline namespace CPU_CAPABILITY {
namespace conv_detail {

inline constexpr int64_t kBlockPixels = 96;     // enough to read a panel from L2 or L3 for
inline constexpr int64_t kMostColumns = 192;    // of a row that is not split
inline constexpr int64_t kBlockFloats = 32768;  // of results: 128 KB
inline constexpr int64_t kStripFloats = 65536;  // of sources, where a row needs no more: 256 KB

// How the results are cut into tasks.
struct Blocks {
  int64_t images, rows, cols;        // of a block; several images are whole ones
  int64_t by_image, by_row, by_col;  // numbers of blocks
  int64_t panels, by_panel;          // panels of a task, tasks of a block and group
  int64_t strip_floats;              // of the sources of a block

  int64_t pixels() const { return images * rows * cols; }
  int64_t count() const { return by_image * by_row * by_col; }
};

inline Blocks choose_blocks(const PlaneSum& sum, int64_t threads) {
  Blocks b{};
  // Parts of about equal size, of whole periods of the classes.
  const auto cut = [](const AxisSum& axis, int64_t most) {
    const int64_t parts = ceil_divide(axis.to, most);
    return std::min(axis.to, round_up(ceil_divide(axis.to, parts), axis.step));
  };
  b.cols = sum.w.to <= kMostColumns ? sum.w.to : cut(sum.w, kMostColumns / 2);
  const auto strip = [&] { return sum.h.reach(b.rows) * sum.w.reach(b.cols) * sum.from_channels; };
  b.rows = std::clamp<int64_t>(kBlockPixels / b.cols, 1, sum.h.to);
  while (b.rows > 1 && strip() > kStripFloats) --b.rows;
  b.rows = cut(sum.h, b.rows);
  b.images = 1;
  if (b.rows == sum.h.to && b.cols == sum.w.to) {
    b.images = std::min(kBlockPixels / (b.rows * b.cols), kStripFloats / strip());
    b.images = std::clamp<int64_t>(b.images, 1, sum.n);
  }
  b.strip_floats = b.images * strip();
  b.by_image = ceil_divide(sum.n, b.images);
  b.by_row = ceil_divide(sum.h.to, b.rows);
  b.by_col = ceil_divide(sum.w.to, b.cols);
  // With few blocks, panels are shared out too, so that each thread has some tasks.
  const int64_t panels = Panels{sum.to_channels}.count();
  const int64_t enough = b.count() * sum.groups * panels / (4 * threads);
  b.panels =
      std::clamp<int64_t>(std::min(kBlockFloats / (b.pixels() * kPanelWidth), enough), 1, panels);
  b.by_panel = ceil_divide(panels, b.panels);
  b.panels = ceil_divide(panels, b.by_panel);
  return b;
}

// What a task computes.
struct Place {
  int64_t image, images, group, first_panel, end_panel;
  Window window;  // of the results
};

inline Place place_of(int64_t task, const PlaneSum& sum, const Blocks& b) {
  Place place;
  place.first_panel = task % b.by_panel * b.panels;
  place.end_panel = std::min(place.first_panel + b.panels, Panels{sum.to_channels}.count());
  task /= b.by_panel;
  place.group = task % sum.groups;
  task /= sum.groups;
  const int64_t col = task % b.by_col * b.cols, row = task / b.by_col % b.by_row * b.rows;
  place.image = task / (b.by_col * b.by_row) * b.images;
  place.images = std::min(b.images, sum.n - place.image);
  place.window = {row, std::min(b.rows, sum.h.to - row), col, std::min(b.cols, sum.w.to - col)};
  return place;
}

// Where the sources of a block lie: data is that of tap offset 0 of the block's first result.
struct Source {
  const float* data;
  int64_t image_stride, row_stride, pixel_stride;
};

// Where the results of a block go: to scratch, or in place.
struct Target {
  float* data;
  int64_t image_stride, row_stride, pixel_stride;
};

// The results of one class in a block, and their terms.
struct ClassTerms {
  std::vector<int64_t> in,
      out;                    // of each result: the offset of its source, and its own in the block
  std::vector<int64_t> taps;  // offsets of the runs of terms
  int64_t run;                // terms of a run
};

inline ClassTerms class_terms(const PlaneSum& sum, const AxisClass& h, const AxisClass& w,
                              const Place& place, const Source& source, const Target& target) {
  ClassTerms terms;
  for (int64_t image = 0; image < place.images; ++image) {
    for (int64_t row = h.first, i = 0; row < place.window.rows; row += sum.h.step, ++i) {
      for (int64_t col = w.first, j = 0; col < place.window.cols; col += sum.w.step, ++j) {
        terms.in.push_back(image * source.image_stride + i * sum.h.from_step * source.row_stride +
                           j * sum.w.from_step * source.pixel_stride);
        terms.out.push_back(image * target.image_stride + row * target.row_stride +
                            col * target.pixel_stride);
      }
    }
  }
  // Neighbouring taps of a row are one run when nothing lies between their channels.
  const auto across = static_cast<int64_t>(w.taps.size());
  bool joined = across > 0 && source.pixel_stride == sum.from_channels;
  for (int64_t t = 1; t < across; ++t) {
    joined = joined && w.taps[t].offset == w.taps[t - 1].offset + 1;
  }
  terms.run = sum.from_channels * (joined ? across : 1);
  for (const AxisTap& y : h.taps) {
    for (int64_t t = 0; t < (joined ? 1 : across); ++t) {
      terms.taps.push_back(y.offset * source.row_stride + w.taps[t].offset * source.pixel_stride);
    }
  }
  return terms;
}

// results[pixel][column] = the sums of a class, for a task's panels, chunk by chunk of the terms.
inline void multiply_class(const ClassTerms& terms, const float* from, const float* packed,
                           const Panels& panels, const Place& place, float* results) {
  const auto taps = static_cast<int64_t>(terms.taps.size());
  const int64_t pieces = ceil_divide(terms.run, kPanelTerms);
  const int64_t piece = ceil_divide(terms.run, pieces);
  const int64_t together = std::max<int64_t>(1, kPanelTerms / terms.run);
  for (int64_t tap = 0; tap < taps; tap += together) {
    for (int64_t at = 0; at < terms.run; at += piece) {
      for (int64_t panel = place.first_panel; panel < place.end_panel; ++panel) {
        const int vectors = panels.vectors(panel);
        const int64_t width = vectors * kLaneCount;
        const Terms chunk{terms.taps.data() + tap,
                          std::min(together, taps - tap),
                          std::min(piece, terms.run - at),
                          1,
                          width,
                          terms.run * width};
        const float* columns = packed + panel * kPanelWidth * taps * terms.run;
        multiply_rows(static_cast<int64_t>(terms.in.size()), vectors, tap + at > 0, chunk,
                      from + at, terms.in.data(), columns + (tap * terms.run + at) * width,
                      results + (panel - place.first_panel) * kPanelWidth, terms.out.data());
      }
    }
  }
}

// The sources of a task: in the strip, filled here, or in place.
template <class T>
Source load_sources(const PlaneSum& sum, const Blocks& blocks, const Place& place, bool in_place,
                    const T* from, float* strip) {
  const int64_t channels = sum.groups * sum.from_channels, plane = sum.h.from * sum.w.from;
  const int64_t channel_stride = sum.channels_last ? 1 : plane;
  const int64_t pixel_stride = sum.channels_last ? channels : 1;
  const T* first =
      from + place.image * channels * plane + place.group * sum.from_channels * channel_stride;
  const int64_t y = sum.h.source_of(place.window.y), x = sum.w.source_of(place.window.x);
  if constexpr (std::is_same_v<T, float>) {
    if (in_place) {
      const int64_t row = sum.w.from * channels;
      const float* data = first + (y - sum.h.low) * row + (x - sum.w.low) * channels;
      return {data, plane * channels, row, channels};
    }
  }
  const Window window{y, sum.h.reach(blocks.rows), x, sum.w.reach(blocks.cols)};
  const int64_t row = window.cols * sum.from_channels, size = window.rows * row;
  for (int64_t i = 0; i < place.images; ++i) {
    load_window<T>(
        strip + i * size, sum.from_channels,
        {first + i * channels * plane, sum.h.from, sum.w.from, pixel_stride, channel_stride},
        window, sum.from_channels);
  }
  return {strip - sum.h.low * row - sum.w.low * sum.from_channels, size, row, sum.from_channels};
}

// The results of a task in memory: its first pixel and channel, and their number of channels.
template <class T>
struct Results {
  Image<T> image;
  int64_t image_stride, first_channel, channels, offset;

  Results(const PlaneSum& sum, const Place& place, T* to) {
    const int64_t all = sum.groups * sum.to_channels, plane = sum.h.to * sum.w.to;
    const int64_t in_group = place.first_panel * kPanelWidth;
    image = {to, sum.h.to, sum.w.to, sum.channels_last ? all : 1, sum.channels_last ? 1 : plane};
    image_stride = all * plane;
    first_channel = place.group * sum.to_channels + in_group;
    channels = std::min(sum.to_channels, place.end_panel * kPanelWidth) - in_group;
    offset = place.image * image_stride + first_channel * image.channel_stride +
             (place.window.y * sum.w.to + place.window.x) * image.pixel_stride;
    image.data += offset;
  }
};

template <class T>
void store_results(const Results<T>& to, const Place& place, const Target& from,
                   const Epilogue<T>& epilogue) {
  const Window& window = place.window;
  // Whole rows lie side by side.
  const bool whole = window.cols == to.image.w;
  const int64_t runs = whole ? 1 : window.rows;
  const int64_t run = whole ? window.rows * window.cols : window.cols;
  for (int64_t i = 0; i < place.images; ++i) {
    for (int64_t row = 0; row < runs; ++row) {
      const int64_t at = i * to.image_stride + row * to.image.w * to.image.pixel_stride;
      Image<T> image = to.image;
      image.data += at;
      const Epilogue<T> here{
          epilogue.bias == nullptr ? nullptr : epilogue.bias + to.first_channel,
          epilogue.residual == nullptr ? nullptr : epilogue.residual + to.offset + at,
          epilogue.relu};
      store_pixels<T>(image, from.data + i * from.image_stride + row * from.row_stride,
                      from.pixel_stride, run, to.channels, here);
    }
  }
}

template <class T>
void direct_sum(const PlaneSum& sum, const T* from, const float* packed, int64_t packed_floats,
                T* to, const Epilogue<T>& epilogue) {
  const Blocks blocks = choose_blocks(sum, num_threads());
  const Panels panels{sum.to_channels};
  const bool in_place = std::is_same_v<T, float> && sum.channels_last && sum.h.needs_no_padding() &&
                        sum.w.needs_no_padding();
  // Whole vectors of float32 channels: sums are kept where the results go.
  const bool in_place_out =
      std::is_same_v<T, float> && sum.channels_last && sum.to_channels % kLaneCount == 0;
  const bool finished = epilogue.bias == nullptr && epilogue.residual == nullptr && !epilogue.relu;
  const int64_t strip_floats = in_place ? 0 : round_up(blocks.strip_floats, 16);
  const int64_t width = blocks.panels * kPanelWidth;
  const int64_t result_floats = in_place_out ? 0 : blocks.pixels() * width;
  const int64_t tasks = blocks.count() * sum.groups * blocks.by_panel;
  parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
    auto* strip =
        static_cast<float*>(thread_scratch((strip_floats + result_floats + 16) * sizeof(float)));
    Source source{};
    for (int64_t task = begin; task < end; ++task) {
      const Place place = place_of(task, sum, blocks);
      if (task == begin || task % blocks.by_panel == 0) {
        source = load_sources(sum, blocks, place, in_place, from, strip);
      }
      const Results<T> results(sum, place, to);
      const int64_t cols = place.window.cols;
      Target target{strip + strip_floats, place.window.rows * cols * width, cols * width, width};
      if constexpr (std::is_same_v<T, float>) {
        const int64_t pixel = results.image.pixel_stride;
        if (in_place_out)
          target = {results.image.data, results.image_stride, sum.w.to * pixel, pixel};
      }
      const float* weight = packed + place.group * (packed_floats / sum.groups);
      for (const AxisClass& h : sum.h.classes) {
        for (const AxisClass& w : sum.w.classes) {
          const ClassTerms terms = class_terms(sum, h, w, place, source, target);
          if (terms.taps.empty()) {
            for (const int64_t at : terms.out)
              std::fill_n(target.data + at, results.channels, 0.0f);
            continue;
          }
          multiply_class(terms, source.data, weight, panels, place, target.data);
          weight += static_cast<int64_t>(terms.taps.size()) * terms.run * panels.width();
        }
      }
      if (!in_place_out || !finished) store_results(results, place, target, epilogue);
    }
  });
}

}  // namespace conv_detail
}  // namespace CPU_CAPABILITY
}  // namespace fastdl
