// Batch norm on CPU, with an optional residual and ReLU behind it, forward.
//   y = [ReLU] ((x - mean) rstd weight + bias [+ residual]), rstd = 1 / sqrt(var + eps)
// NCHW: a thread takes a channel, and finds its planes in the cache when it writes: 2 moves of the
// tensor. Where there are few channels, it takes parts of them, first of all moments, then of all
// outputs; channels last it takes rows, in tiles of columns for the moments: tensors larger than
// the cache are then read twice (3 moves). Evaluation: 2 moves. Parts and tiles depend on sizes
// alone and are added in order: the same bits for any number of threads. Where input and output are
// larger than the cache, the output goes past it. Floor: bytes moved / copy bandwidth.
#include "batch_norm/batch_norm_cpu.h"

namespace fastdl {
inline namespace CPU_CAPABILITY {
namespace {

// What is known of the channels: arrays of [cols], of which channel c has c, c + channels, ..
template <class A>
struct ForwardChannels {
  const BatchNormForwardArgs& args;
  A *mean, *scale, *shift;

  ForwardFactors<A> at(int64_t c) const { return {mean[c], scale[c], shift[c]}; }
  ForwardFactors<const A*> all() const { return {mean, scale, shift}; }

  void set(int64_t c, double center, double variance) {
    const A rstd = static_cast<A>(1 / std::sqrt(variance + args.eps));
    mean[c] = static_cast<A>(center);
    scale[c] = rstd * static_cast<A>(parameter(args.weight, args.weight_dtype, c, 1));
    shift[c] = static_cast<A>(parameter(args.bias, args.weight_dtype, c, 0));
    static_cast<A*>(args.mean)[c] = mean[c];
    static_cast<A*>(args.rstd)[c] = rstd;
  }
  void set_from(int64_t c, const Moments& moments) {
    set(c, moments.mean, moments.squares / moments.count);
    move_running(args.running_mean, c, moments.mean);
    move_running(args.running_var, c, moments.squares / (moments.count - 1));
  }
  void set_from_running(int64_t c) {
    set(c, parameter(args.running_mean, args.weight_dtype, c, 0),
        parameter(args.running_var, args.weight_dtype, c, 0));
  }

 private:
  void move_running(void* running, int64_t c, double towards) {
    if (running == nullptr) return;
    const double before = parameter(running, args.weight_dtype, c, 0);
    set_parameter(running, args.weight_dtype, c,
                  args.momentum * towards + (1 - args.momentum) * before);
  }
};

template <class T>
void forward_planes(const BatchNormForwardArgs& args, const ForwardData<T>& data) {
  using A = Accumulate<T>;
  const Planes planes(args.shape);
  const int64_t channels = args.shape.channels;
  Carver scratch(channels * (3 * sizeof(A) + planes.parts * sizeof(Moments)), 4);
  Moments* const of_parts = scratch.take<Moments>(channels * planes.parts);
  ForwardChannels<A> known{args, scratch.take<A>(channels), scratch.take<A>(channels),
                           scratch.take<A>(channels)};
  const int64_t elements = args.shape.batch * args.shape.spatial;
  const int64_t next = ahead(args.shape.spatial, elements * sizeof(T));
  for_each_unit(
      channels, planes.parts, elements,
      [&](int64_t c, int64_t number) {
        const Part part = planes.part(c, number);
        of_parts[c * planes.parts + number] = moments_of_runs(data.input + part.offset, part.runs);
      },
      [&](int64_t c) {
        Moments all = of_parts[c * planes.parts];
        for (int64_t p = 1; p < planes.parts; ++p) all.add(of_parts[c * planes.parts + p]);
        known.set_from(c, all);
      },
      [&](int64_t c, int64_t number) {
        const Part part = planes.part(c, number);
        normalise_runs(data.from(part.offset), part.runs, known.at(c), next);
      });
}

// With running statistics: planes in the order of memory.
template <class T>
void evaluate_planes(const BatchNormForwardArgs& args, const ForwardData<T>& data) {
  using A = Accumulate<T>;
  const int64_t channels = args.shape.channels, spatial = args.shape.spatial;
  Carver scratch(channels * 3 * sizeof(A), 3);
  ForwardChannels<A> known{args, scratch.take<A>(channels), scratch.take<A>(channels),
                           scratch.take<A>(channels)};
  parallel_for(0, channels, kChannelGrain, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) known.set_from_running(c);
  });
  const int64_t parts = std::clamp<int64_t>(spatial / kPart, 1, 64);  // of a plane
  const int64_t grain = std::max<int64_t>(1, kGrain * parts / spatial);
  parallel_for(0, args.shape.batch * channels * parts, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t plane = i / parts, first = part_begin(spatial, i % parts, parts);
      const Runs run{1, part_begin(spatial, i % parts + 1, parts) - first, spatial};
      normalise_runs(data.from(plane * spatial + first), run, known.at(plane % channels), 0);
    }
    finish_writes();
  });
}

// From the moments of columns in each range (means[ranges][2][cols]), those in all, behind them:
// range after range, as they lie in memory.
void combine_ranges(const Rows& rows, double* means, int64_t begin, int64_t end) {
  const int64_t cols = rows.cols;
  double* const mean = means + rows.ranges * 2 * cols;
  double* const squares = mean + cols;
  std::copy(means + begin, means + end, mean + begin);
  std::fill(squares + begin, squares + end, 0.0);
  const auto rows_of = [&](int64_t range) {
    return static_cast<double>(rows.first_row(range + 1) - rows.first_row(range));
  };
  for (int64_t range = 1; range < rows.ranges; ++range) {
    const double part = rows_of(range) / static_cast<double>(rows.rows);
    const double* const of_range = means + range * 2 * cols;
    for (int64_t i = begin; i < end; ++i) mean[i] += part * (of_range[i] - means[i]);
  }
  for (int64_t range = 0; range < rows.ranges; ++range) {
    const double count = rows_of(range);
    const double* const of_range = means + range * 2 * cols;
    for (int64_t i = begin; i < end; ++i) {
      const double difference = of_range[i] - mean[i];
      squares[i] += of_range[cols + i] + count * difference * difference;
    }
  }
}

template <class T>
void forward_rows(const BatchNormForwardArgs& args, const ForwardData<T>& data) {
  using A = Accumulate<T>;
  const Rows rows(args.shape);
  const int64_t cols = rows.cols, channels = rows.channels;
  const int64_t sums = args.training ? (rows.ranges + 1) * 2 * cols : 0;
  Carver scratch(sums * sizeof(double) + 3 * cols * sizeof(A), 4);
  double* const means = scratch.take<double>(sums);  // of ranges, then of all
  ForwardChannels<A> known{args, scratch.take<A>(cols), scratch.take<A>(cols),
                           scratch.take<A>(cols)};
  double* const mean = means + rows.ranges * 2 * cols;
  if (args.training) {
    rows.for_each_tile([&](int64_t range, int64_t row, int64_t count, int64_t col, int64_t width) {
      double* const of_range = means + range * 2 * cols + col;
      moments_of_columns(data.input + row * cols + col, count, width, cols, of_range,
                         of_range + cols);
    });
    rows.for_columns([&](int64_t begin, int64_t end) { combine_ranges(rows, means, begin, end); });
  }
  parallel_for(0, channels, kChannelGrain, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      if (!args.training) {
        known.set_from_running(c);
        continue;
      }
      Moments all = moments_of_sets(mean + c, mean + cols + c, cols / channels, channels,
                                    static_cast<double>(rows.rows));
      if (!std::isfinite(all.squares)) {
        all = moments_in_double(rows.rows * cols / channels, [&](int64_t i) {
          return static_cast<double>(data.input[i * channels + c]);
        });
      }
      known.set_from(c, all);
    }
  });
  for (A* array : {known.mean, known.scale, known.shift}) repeat_channels(array, channels, cols);
  rows.for_all_rows([&](int64_t row, int64_t count) {
    normalise_rows(data.from(row * cols), count, cols, known.all());
  });
}

}  // namespace
}  // namespace CPU_CAPABILITY

template <>
void batch_norm_forward<kBuildIsa>(const BatchNormForwardArgs& args) {
  dispatch_dtype<CpuTypes>(args.dtype, [&]<class T> {
    ForwardData<T> data{static_cast<const T*>(args.input), static_cast<const T*>(args.residual),
                        static_cast<T*>(args.output), args.relu,
                        worth_streaming(2 * args.shape.elements() * int64_t{sizeof(T)})};
    if (args.shape.channels_last || args.shape.spatial == 1) {
      data.streaming = data.streaming && rows_are_aligned<T>(data.output, args.shape.channels);
      forward_rows<T>(args, data);
    } else if (args.training) {
      forward_planes<T>(args, data);
    } else {
      evaluate_planes<T>(args, data);
    }
  });
}

}  // namespace fastdl
