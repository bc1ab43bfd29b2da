// The sources of depthwise convolution in scratch memory: float32, padded with zeros, in blocks of
// kDepthwiseLanes result channels side by side: [block][plane][row][col][lane].
//
// Depthwise: lane l is channel l. Groups of 2, 4, 8 or 16 channels that map to as many: lane l is
// channel l too, and the product brings the channels of a group to its lanes. Else there is a plane
// for each channel of a group, whose lane l has that channel of the group that result l is in.
#pragma once

#include <vector>

#include "conv/conv_depthwise_slide_cpu.h"
#include "conv/conv_strip_cpu.h"
#include "conv/conv_taps_cpu.h"

namespace fastdl {
inline namespace CPU_CAPABILITY {
namespace conv_detail {

inline constexpr int64_t kBlockLanes = kDepthwiseLanes;
inline constexpr int64_t kSourceFloats = 32768;  // of a band: 128 KB, which leaves L2 to the next
inline constexpr int64_t kChunk = 4;             // blocks that are read together: 256 bytes
inline constexpr int64_t kResultPixels = 256;    // that wait in L1 to be written: 16 KB

// How a call is cut: a unit is an image's band of result rows, for a chunk of blocks.
struct DepthwiseCut {
  PlaneSum sum;
  LaneSource lanes;
  int64_t planes;         // of a block
  int64_t weight_floats;  // of a block
  int64_t blocks;         // of all channels
  int64_t chunk;          // blocks of a unit
  int64_t band;           // result rows of a unit
  int64_t result_rows;    // that are written together, whole steps
  int64_t rows, cols;     // sources of a band
  int64_t bands, chunks;

  int64_t to_channels() const { return sum.groups * sum.to_channels; }
  int64_t from_channels() const { return sum.groups * sum.from_channels; }
  int64_t row_floats() const { return cols * kBlockLanes; }
  int64_t plane_floats() const { return rows * row_floats(); }
  int64_t block_floats() const { return planes * plane_floats(); }
  // With what the tiles of a row read, and write, behind the last one.
  int64_t source_floats() const {
    return chunk * block_floats() + 8 * (sum.w.from_step + 1) * kBlockLanes;
  }
  int64_t result_floats(int64_t result_rows) const {
    return (result_rows * sum.w.to + 8 * sum.w.step + 16) * kBlockLanes;
  }
  int64_t units() const { return sum.n * bands * chunks; }
  // Whether sources are more, or other, than the channels in their order.
  bool spreads() const {
    return lanes == LaneSource::kOwn && sum.from_channels * sum.to_channels > 1;
  }
};

inline LaneSource lane_source(const PlaneSum& sum) {
  const int64_t size = sum.to_channels;
  if (size == 1 || size != sum.from_channels || kBlockLanes % size != 0) return LaneSource::kOwn;
  return size <= kWithinVector ? LaneSource::kWithinVector : LaneSource::kOnePerVector;
}

inline DepthwiseCut cut_depthwise(const ConvShape& shape, bool backward, int64_t threads) {
  DepthwiseCut cut{};
  cut.sum = plane_sum(shape, backward);
  const PlaneSum& sum = cut.sum;
  cut.lanes = lane_source(sum);
  cut.planes = cut.lanes == LaneSource::kOwn ? sum.from_channels : 1;
  cut.weight_floats = sum.from_channels * shape.h.kernel * shape.w.kernel * kBlockLanes;
  cut.blocks = ceil_divide(cut.to_channels(), kBlockLanes);
  cut.cols = sum.w.reach(sum.w.to);
  const int64_t most = std::clamp<int64_t>(kResultPixels / sum.w.to, 1, sum.h.to);
  cut.result_rows = round_up(most, sum.h.step);
  const auto use = [&](int64_t chunk, int64_t band) {
    cut.chunk = chunk;
    cut.band = std::min(sum.h.to, round_up(band, cut.result_rows));
    cut.rows = sum.h.reach(cut.band);
    cut.bands = ceil_divide(sum.h.to, cut.band);
    cut.chunks = ceil_divide(cut.blocks, chunk);
  };
  const auto fits = [&](int64_t chunk, int64_t band) {
    use(chunk, band);
    return chunk * cut.block_floats() <= kSourceFloats;
  };
  // Planes of NCHW are read one block after the other.
  int64_t chunk = sum.channels_last ? std::min(kChunk, cut.blocks) : 1;
  while (chunk > 1 && !fits(chunk, std::min<int64_t>(8, sum.h.to))) chunk /= 2;
  int64_t band = sum.h.to;
  while (band > cut.result_rows && !fits(chunk, band)) band = ceil_divide(band, 2);
  for (use(chunk, band); cut.units() < 2 * threads && band > cut.result_rows; use(chunk, band)) {
    band = ceil_divide(band, 2);
  }
  return cut;
}

// The channel that each lane reads: numbers[from_channel][lane], counted from the first one that
// the block reads, of `count`.
struct LaneNumbers {
  int64_t first, count;
  std::vector<int32_t> numbers;

  LaneNumbers(const DepthwiseCut& cut, int64_t block) {
    const PlaneSum& sum = cut.sum;
    const int64_t begin = block * kBlockLanes, last = cut.to_channels() - 1;
    const int64_t group = begin / sum.to_channels;
    first = group * sum.from_channels;
    count =
        (std::min(begin + kBlockLanes - 1, last) / sum.to_channels - group + 1) * sum.from_channels;
    for (int64_t j = 0; j < sum.from_channels; ++j) {
      for (int64_t lane = 0; lane < kBlockLanes; ++lane) {
        const int64_t each = std::min(begin + lane, last) / sum.to_channels - group;
        numbers.push_back(static_cast<int32_t>(each * sum.from_channels + j));
      }
    }
  }

  // Spreads the channels of a pixel over planes.
  void spread(const float* pixel, float* to, int64_t plane_floats) const {
    const int32_t* number = numbers.data();
    for (size_t j = 0; j < numbers.size() / kBlockLanes; ++j, to += plane_floats) {
      for (int64_t lane = 0; lane < kBlockLanes; ++lane) to[lane] = pixel[*number++];
    }
  }
};

// Fills the sources of units.
template <class T>
class DepthwiseSource {
 public:
  // Scratch for pixels whose channels are spread next, and for planes on their way to pixels.
  static int64_t pixel_floats(const DepthwiseCut& cut) {
    const int64_t pixels = cut.sum.channels_last ? 1 : cut.rows * cut.sum.w.from;
    return pixels * kBlockLanes * cut.planes + kBlockLanes;
  }

  DepthwiseSource(const DepthwiseCut& cut, const T* from, float* to, float* pixels)
      : cut_(cut), from_(from), to_(to), pixels_(pixels) {
    const AxisSum& w = cut.sum.w;
    left_ = std::clamp<int64_t>(-w.low, 0, cut.cols);
    first_ = std::max<int64_t>(0, w.low);
    count_ = std::clamp<int64_t>(std::min(w.from - first_, cut.cols - left_), 0, w.from);
    std::memset(to, 0, cut.source_floats() * sizeof(float));  // the margins stay so
  }

  // The sources of rows from `y` on, inside or not, for blocks [begin, end).
  void load(int64_t image, int64_t y, int64_t begin, int64_t end) {
    const PlaneSum& sum = cut_.sum;
    const Rows rows = rows_from(y);
    for (int64_t row = 0; row < cut_.rows; ++row) {
      if (row >= rows.first - y && row < rows.last - y) continue;
      for (int64_t i = 0; i < (end - begin) * cut_.planes; ++i) {
        std::memset(to_ + i * cut_.plane_floats() + row * cut_.row_floats(), 0,
                    cut_.row_floats() * sizeof(float));
      }
    }
    if (rows.first == rows.last || count_ == 0) return;
    if (cut_.spreads()) prepare(begin, end);
    float* const to = to_ + (rows.first - y) * cut_.row_floats() + left_ * kBlockLanes;
    if (!sum.channels_last) {
      for (int64_t b = begin; b < end; ++b) {
        turn_planes(image, rows, b, to + (b - begin) * cut_.block_floats(), b - begin);
      }
      return;
    }
    for (int64_t row = rows.first; row < rows.last; ++row) {
      const T* const from =
          from_ + ((image * sum.h.from + row) * sum.w.from + first_) * cut_.from_channels();
      float* const line = to + (row - rows.first) * cut_.row_floats();
      cut_.spreads() ? spread_pixels(from, line) : copy_pixels(from, line, begin, end);
    }
  }

  // What load() will read.
  FetchAhead ahead(int64_t image, int64_t y, int64_t begin, int64_t end) const {
    const PlaneSum& sum = cut_.sum;
    const Rows rows = rows_from(y);
    const int64_t channels = cut_.from_channels(), pixels = (rows.last - rows.first) * sum.w.from;
    // Not exact where a block ends within a group.
    const int64_t first = begin * kBlockLanes * channels / cut_.to_channels();
    const int64_t last = std::min(channels, end * kBlockLanes * channels / cut_.to_channels());
    if (pixels == 0) return {};
    if (sum.channels_last) {
      const int64_t at = (image * sum.h.from + rows.first) * sum.w.from * channels + first;
      return {reinterpret_cast<const char*>(from_ + at), (last - first) * int64_t{sizeof(T)},
              channels * int64_t{sizeof(T)}, pixels};
    }
    const int64_t plane = sum.h.from * sum.w.from;
    const int64_t at = (image * channels + first) * plane + rows.first * sum.w.from;
    return {reinterpret_cast<const char*>(from_ + at), pixels * int64_t{sizeof(T)},
            plane * int64_t{sizeof(T)}, last - first};
  }

 private:
  struct Rows {
    int64_t first, last;  // inside
  };

  Rows rows_from(int64_t y) const {
    const int64_t first = std::clamp<int64_t>(y, 0, cut_.sum.h.from);
    return {first, std::clamp(y + cut_.rows, first, cut_.sum.h.from)};
  }

  void prepare(int64_t begin, int64_t end) {
    if (begin == begin_ && static_cast<int64_t>(numbers_.size()) == end - begin) return;
    begin_ = begin;
    numbers_.clear();
    for (int64_t b = begin; b < end; ++b) numbers_.emplace_back(cut_, b);
  }

  void copy_pixels(const T* from, float* to, int64_t begin, int64_t end) const {
    const int64_t channels = cut_.from_channels();
    const int64_t whole = std::min(end, channels / kBlockLanes);
    for (int64_t col = 0; col < count_; ++col) {
      const T* const pixel = from + col * channels;
      float* line = to + col * kBlockLanes;
      for (int64_t b = begin; b < whole; ++b, line += cut_.block_floats()) {
        for (int64_t lane = 0; lane < kBlockLanes; lane += kLaneCount) {
          store_vector(line + lane, load_vector(pixel + b * kBlockLanes + lane));
        }
      }
      if (whole < end) widen_row(line, pixel + whole * kBlockLanes, channels % kBlockLanes);
    }
  }

  void spread_pixels(const T* from, float* to) const {
    for (int64_t col = 0; col < count_; ++col) {
      for (size_t b = 0; b < numbers_.size(); ++b) {
        const T* const pixel = from + col * cut_.from_channels() + numbers_[b].first;
        widen_row(pixels_, pixel, numbers_[b].count);
        numbers_[b].spread(pixels_, to + b * cut_.block_floats() + col * kBlockLanes,
                           cut_.plane_floats());
      }
    }
  }

  // Blocks of 8 pixels do not end with short rows: those are turned as one.
  void turn_planes(int64_t image, const Rows& rows, int64_t block, float* to,
                   int64_t number) const {
    const int64_t cols = cut_.sum.w.from, plane = cut_.sum.h.from * cols;
    const int64_t first = cut_.spreads() ? numbers_[number].first : block * kBlockLanes;
    const int64_t channels = cut_.spreads() ? numbers_[number].count
                                            : std::min(kBlockLanes, cut_.from_channels() - first);
    const T* from = from_ + (image * cut_.from_channels() + first) * plane + rows.first * cols;
    const int64_t count = rows.last - rows.first;
    const bool direct = !cut_.spreads() && (cols % kTransposed == 0 || cols > 8 * kTransposed);
    if (!direct) {
      const int64_t stride = cut_.spreads() ? channels : kBlockLanes;
      transpose(pixels_, stride, from, plane, channels, count * cols);
      for (int64_t row = 0; row < count; ++row, to += cut_.row_floats()) {
        const float* const pixel = pixels_ + (row * cols + first_) * stride;
        if (!cut_.spreads()) {
          std::memcpy(to, pixel, count_ * kBlockLanes * sizeof(float));
          continue;
        }
        for (int64_t col = 0; col < count_; ++col) {
          numbers_[number].spread(pixel + col * stride, to + col * kBlockLanes,
                                  cut_.plane_floats());
        }
      }
      return;
    }
    for (int64_t row = 0; row < count; ++row, from += cols, to += cut_.row_floats()) {
      transpose(to, kBlockLanes, from + first_, plane, channels, count_);
    }
  }

  const DepthwiseCut& cut_;
  const T* from_;
  float *to_, *pixels_;
  int64_t left_, first_, count_;  // zeros before a row; first column that is read, and how many
  int64_t begin_ = -1;
  std::vector<LaneNumbers> numbers_;
};

}  // namespace conv_detail
}  // namespace CPU_CAPABILITY
}  // namespace fastdl
