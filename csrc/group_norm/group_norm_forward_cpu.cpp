// Group norm on CPU, forward: for each sample and group of channels
//   y = (x - mean) rstd weight + bias, rstd = 1 / sqrt(var + eps)
// NCHW: a group's channels are one contiguous row, which a thread takes and finds in the cache when
// it writes. Channels last: a thread takes a sample, whose moments by column are combined by group.
// Short planes are written with parameters for each element of the row instead of each plane.
// 2 moves of the tensor while a row or sample fits the cache, else 3. Where there are few and long
// ones, threads take parts of them, first of all moments, then of all outputs. Parts depend on
// sizes alone and are added in order: the same bits for any number of threads. Where input and
// output are larger than the cache, the output goes past it. Floor: bytes moved / copy bandwidth.
#include "group_norm/group_norm_cpu.h"

namespace fastdl {
inline namespace CPU_CAPABILITY {
namespace {

// Writes a group's statistics, and gives its rstd.
template <class A>
A set_statistics(const GroupNormForwardArgs& args, int64_t group, const Moments& moments) {
  const A rstd = static_cast<A>(1 / std::sqrt(moments.squares / moments.count + args.eps));
  static_cast<A*>(args.mean)[group] = static_cast<A>(moments.mean);
  static_cast<A*>(args.rstd)[group] = rstd;
  return rstd;
}

// The parameters in the type that is computed in, each `repeat` times over
template <class A>
struct Parameters {
  A *weight, *bias;

  static size_t bytes(const GroupNormShape& shape, int64_t repeat) {
    return 2 * shape.channels * repeat * sizeof(A);
  }
  Parameters(const GroupNormForwardArgs& args, int64_t repeat, Carver& scratch) {
    const int64_t channels = args.shape.channels;
    weight = scratch.take<A>(channels * repeat);
    bias = scratch.take<A>(channels * repeat);
    read_parameter(args.weight, args.weight_dtype, channels, repeat, A(1), weight);
    read_parameter(args.bias, args.weight_dtype, channels, repeat, A(0), bias);
  }
};

// A part of a group, as a row with parameters for each element
template <class T>
void normalise_row(const ForwardData<T>& data, int64_t size, Accumulate<T> mean, Accumulate<T> rstd,
                   const Accumulate<T>* weight, const Accumulate<T>* bias) {
  using A = Accumulate<T>;
  using V = Vec<T>;
  const V center(mean), factor(rstd);
  const T* const input = data.input;
  T* const output = data.output;
  const bool streaming = data.streaming && worth_streaming_runs<T>({1, size, 0});
  for_output_run(output, size, streaming, [=](int64_t i, auto count) {
    const V centred = load_vector(input + i, count, A(0)) - center;
    const V scale = factor * load_vector(weight + i, count, A(0));
    write_vector(output + i, at::vec::fmadd(centred, scale, load_vector(bias + i, count, A(0))),
                 count, streaming);
  });
}

template <class T>
void forward_planes(const GroupNormForwardArgs& args, const ForwardData<T>& data) {
  using A = Accumulate<T>;
  const GroupNormShape& shape = args.shape;
  const int64_t rows = shape.batch * shape.groups, spatial = shape.spatial;
  const int64_t columns = shape.channels_of_group(), cols = columns * spatial;
  const int64_t parts = std::clamp<int64_t>(cols / kPart, 1, 64);
  const int64_t repeat = has_short_planes(shape) ? spatial : 1;
  Carver scratch(rows * parts * sizeof(Moments) + Parameters<A>::bytes(shape, repeat), 3);
  Moments* const of_parts = scratch.take<Moments>(rows * parts);
  const Parameters<A> parameters(args, repeat, scratch);
  const int64_t next = ahead(cols, cols * sizeof(T));
  for_each_unit(
      rows, parts, cols,
      [&](int64_t row, int64_t part) {
        const int64_t begin = part_begin(cols, part, parts);
        of_parts[row * parts + part] = moments_of_runs(
            data.input + row * cols + begin, Runs{1, part_begin(cols, part + 1, parts) - begin, 0});
      },
      [&](int64_t row) {
        Moments all = of_parts[row * parts];
        for (int64_t part = 1; part < parts; ++part) all.add(of_parts[row * parts + part]);
        set_statistics<A>(args, row, all);
      },
      [&](int64_t row, int64_t part) {
        const int64_t end = part_begin(cols, part + 1, parts), first = row % shape.groups * columns;
        const A mean = static_cast<const A*>(args.mean)[row];
        const A rstd = static_cast<const A*>(args.rstd)[row];
        const A* const weight = parameters.weight + first * repeat;
        const A* const bias = parameters.bias + first * repeat;
        int64_t begin = part_begin(cols, part, parts);
        if (has_short_planes(shape)) {
          return normalise_row(data.from(row * cols + begin), end - begin, mean, rstd,
                               weight + begin, bias + begin);
        }
        for (int64_t channel = begin / spatial; begin < end; ++channel) {
          const int64_t length = std::min(end, (channel + 1) * spatial) - begin;
          normalise_runs(data.from(row * cols + begin), Runs{1, length, 0},
                         {mean, rstd * weight[channel], bias[channel]}, next);
          begin += length;
        }
      });
}

template <class T>
void forward_samples(const GroupNormForwardArgs& args, const ForwardData<T>& data) {
  using A = Accumulate<T>;
  const GroupNormShape& shape = args.shape;
  const Samples samples(shape);
  const int64_t channels = shape.channels, columns = shape.channels_of_group();
  const int64_t sums = 2 * channels * samples.ranges;
  Carver scratch(shape.batch * (sums * sizeof(double) + 3 * channels * sizeof(A)) +
                     Parameters<A>::bytes(shape, 1),
                 4);
  double* const all_sums = scratch.take<double>(shape.batch * sums);
  A* const all_factors = scratch.take<A>(shape.batch * 3 * channels);
  const Parameters<A> parameters(args, 1, scratch);
  for_each_unit(
      shape.batch, samples.ranges, samples.elements(),
      [&](int64_t sample, int64_t range) {
        const int64_t row = samples.first_row(range), rows = samples.first_row(range + 1) - row;
        const T* const input = data.input + sample * samples.elements() + row * channels;
        double* const means = all_sums + sample * sums + range * 2 * channels;
        samples.for_tiles([&](int64_t col, int64_t width) {
          moments_of_columns(input + col, rows, width, channels, means + col,
                             means + channels + col);
        });
      },
      [&](int64_t sample) {
        A* const mean = all_factors + sample * 3 * channels;
        const T* const input = data.input + sample * samples.elements();
        for (int64_t group = 0; group < shape.groups; ++group) {
          const int64_t first = group * columns;
          Moments all;
          for (int64_t range = 0; range < samples.ranges; ++range) {
            const double* const means = all_sums + sample * sums + range * 2 * channels + first;
            const int64_t rows = samples.first_row(range + 1) - samples.first_row(range);
            all.add(
                moments_of_sets(means, means + channels, columns, 1, static_cast<double>(rows)));
          }
          if (!std::isfinite(all.squares)) {
            all = moments_in_double(columns * shape.spatial, [&](int64_t i) {
              return static_cast<double>(input[i / columns * channels + first + i % columns]);
            });
          }
          const A rstd = set_statistics<A>(args, sample * shape.groups + group, all);
          for (int64_t c = first; c < first + columns; ++c) {
            mean[c] = static_cast<A>(all.mean);
            mean[channels + c] = rstd * parameters.weight[c];
            mean[2 * channels + c] = parameters.bias[c];
          }
        }
      },
      [&](int64_t sample, int64_t range) {
        const A* const mean = all_factors + sample * 3 * channels;
        const int64_t row = samples.first_row(range), rows = samples.first_row(range + 1) - row;
        normalise_rows(data.from(sample * samples.elements() + row * channels), rows, channels,
                       {mean, mean + channels, mean + 2 * channels});
      });
}

}  // namespace
}  // namespace CPU_CAPABILITY

template <>
void group_norm_forward<kBuildIsa>(const GroupNormForwardArgs& args) {
  dispatch_dtype<CpuTypes>(args.dtype, [&]<class T> {
    ForwardData<T> data{static_cast<const T*>(args.input), nullptr, static_cast<T*>(args.output),
                        false, worth_streaming(2 * args.shape.elements() * int64_t{sizeof(T)})};
    if (args.shape.channels_last) {
      data.streaming = data.streaming && rows_are_aligned<T>(data.output, args.shape.channels);
      forward_samples<T>(args, data);
    } else {
      forward_planes<T>(args, data);
    }
  });
}

}  // namespace fastdl
