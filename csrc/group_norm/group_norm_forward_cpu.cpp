// Group norm on CPU, forward: for each sample and group of channels
//   y = (x - mean) rstd weight + bias, rstd = 1 / sqrt(var + eps)
// NCHW: a group's channels are one contiguous row, which a thread takes and finds in the cache when
// it writes. Channels last: a thread takes a sample, whose moments by column are combined by group.
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

template <class A>
ForwardFactors<A> factors_of(const GroupNormForwardArgs& args, int64_t group, int64_t channel) {
  const A rstd = static_cast<const A*>(args.rstd)[group];
  return {static_cast<const A*>(args.mean)[group],
          rstd * static_cast<A>(parameter(args.weight, args.weight_dtype, channel, 1)),
          static_cast<A>(parameter(args.bias, args.weight_dtype, channel, 0))};
}

template <class T>
void forward_planes(const GroupNormForwardArgs& args, const ForwardData<T>& data) {
  using A = Accumulate<T>;
  const GroupNormShape& shape = args.shape;
  const int64_t rows = shape.batch * shape.groups, spatial = shape.spatial;
  const int64_t cols = shape.channels_of_group() * spatial;
  const int64_t parts = std::clamp<int64_t>(cols / kPart, 1, 64);
  Carver scratch(rows * parts * sizeof(Moments), 1);
  Moments* const of_parts = scratch.take<Moments>(rows * parts);
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
        const int64_t end = part_begin(cols, part + 1, parts);
        for (int64_t begin = part_begin(cols, part, parts); begin < end;) {
          const int64_t channel = begin / spatial;
          const int64_t length = std::min(end, (channel + 1) * spatial) - begin;
          normalise_runs(
              data.from(row * cols + begin), Runs{1, length, 0},
              factors_of<A>(args, row, row % shape.groups * shape.channels_of_group() + channel),
              ahead(cols, cols * sizeof(T)));
          begin += length;
        }
      });
}

// The moments of a group from those of its columns, of `count` elements each
Moments moments_of_group(const double* means, const double* squares, int64_t columns,
                         int64_t count) {
  Moments all{static_cast<double>(columns * count)};
  for (int64_t i = 0; i < columns; ++i) all.mean += means[i];
  all.mean /= static_cast<double>(columns);
  double between = 0;
  for (int64_t i = 0; i < columns; ++i) {
    const double difference = means[i] - all.mean;
    all.squares += squares[i];
    between += difference * difference;
  }
  all.squares += between * static_cast<double>(count);
  return all;
}

template <class T>
void forward_samples(const GroupNormForwardArgs& args, const ForwardData<T>& data) {
  using A = Accumulate<T>;
  const GroupNormShape& shape = args.shape;
  const Samples samples(shape);
  const int64_t channels = shape.channels, columns = shape.channels_of_group();
  const int64_t sums = 2 * channels * samples.ranges;
  Carver scratch(shape.batch * (sums * sizeof(double) + 3 * channels * sizeof(A)), 2);
  double* const all_sums = scratch.take<double>(shape.batch * sums);
  A* const all_factors = scratch.take<A>(shape.batch * 3 * channels);
  for_each_unit(
      shape.batch, samples.ranges, samples.elements(),
      [&](int64_t sample, int64_t range) {
        if (shape.spatial == 1) return;
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
          if (shape.spatial == 1) {
            all = moments_of_runs(input + first, Runs{1, columns, 0});
          } else {
            for (int64_t range = 0; range < samples.ranges; ++range) {
              const double* const means = all_sums + sample * sums + range * 2 * channels + first;
              all.add(moments_of_group(means, means + channels, columns,
                                       samples.first_row(range + 1) - samples.first_row(range)));
            }
            if (!std::isfinite(all.squares)) {
              all = moments_in_double(columns * shape.spatial, [&](int64_t i) {
                return static_cast<double>(input[i / columns * channels + first + i % columns]);
              });
            }
          }
          const int64_t number = sample * shape.groups + group;
          set_statistics<A>(args, number, all);
          for (int64_t c = first; c < first + columns; ++c) {
            const ForwardFactors<A> factors = factors_of<A>(args, number, c);
            mean[c] = factors.mean;
            mean[channels + c] = factors.scale;
            mean[2 * channels + c] = factors.shift;
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
    if (args.shape.channels_last || args.shape.spatial == 1) {
      data.streaming = data.streaming && rows_are_aligned(data.output, args.shape.channels);
      forward_samples<T>(args, data);
    } else {
      forward_planes<T>(args, data);
    }
  });
}

}  // namespace fastdl
