// Group norm on CPU, backward: for each sample and group of channels, with x^ = (x - mean) rstd
//   dx = rstd (dy weight - mean(dy weight) - x^ mean(dy weight x^))
//   dweight = sum over samples and space of dy x^,  dbias = sum of dy
// The sums of dy and dy (x - mean) over each plane (channels last: over each column of a sample)
// are kept in double, and give all of these. Work is split as in group_norm_forward_cpu.cpp, but a
// group's parts are its planes: 3 moves of the tensor while a group (or sample) fits the cache,
// else 5.
#include "group_norm/group_norm_cpu.h"

namespace fastdl {
inline namespace CPU_CAPABILITY {
namespace {

// Sums by sample and channel, and what they give for each group.
template <class A>
struct Sums {
  const GroupNormBackwardArgs& args;
  double *sums, *products;  // [batch, channels]
  A *pull, *offset;         // [batch, groups]

  Sums(const GroupNormBackwardArgs& args, Carver& scratch) : args(args) {
    const GroupNormShape& shape = args.shape;
    sums = scratch.take<double>(shape.batch * shape.channels);
    products = scratch.take<double>(shape.batch * shape.channels);
    pull = scratch.take<A>(shape.batch * shape.groups);
    offset = scratch.take<A>(shape.batch * shape.groups);
  }
  static size_t bytes(const GroupNormShape& shape) {
    return shape.batch * (2 * shape.channels * sizeof(double) + 2 * shape.groups * sizeof(A));
  }

  double weight(int64_t channel) const {
    return parameter(args.weight, args.weight_dtype, channel, 1);
  }
  A mean(int64_t group) const { return static_cast<const A*>(args.mean)[group]; }
  A rstd(int64_t group) const { return static_cast<const A*>(args.rstd)[group]; }

  void finish_group(int64_t group) {
    const GroupNormShape& shape = args.shape;
    const int64_t columns = shape.channels_of_group(), first = group % shape.groups * columns;
    double sum = 0, product = 0;
    for (int64_t i = 0; i < columns; ++i) {
      sum += weight(first + i) * sums[group * columns + i];
      product += weight(first + i) * products[group * columns + i];
    }
    const double count = static_cast<double>(columns * shape.spatial), scale = rstd(group);
    pull[group] = static_cast<A>(-product / count * scale * scale * scale);
    offset[group] = static_cast<A>(-sum / count * scale);
  }

  // Of a channel (in the first sample, others are `channels` further)
  BackwardFactors<A> factors(int64_t group, int64_t channel) const {
    return {static_cast<A>(weight(channel)) * rstd(group), pull[group], offset[group]};
  }

  void finish_parameters() const {
    if (args.grad_weight == nullptr && args.grad_bias == nullptr) return;
    const GroupNormShape& shape = args.shape;
    const int64_t channels = shape.channels, columns = shape.channels_of_group();
    parallel_for(0, channels, kGrain / shape.batch + 1, [&](int64_t begin, int64_t end) {
      for (int64_t c = begin; c < end; ++c) {
        double sum = 0, product = 0;
        for (int64_t sample = 0; sample < shape.batch; ++sample) {
          sum += sums[sample * channels + c];
          product += products[sample * channels + c] * rstd(sample * shape.groups + c / columns);
        }
        set_parameter(args.grad_weight, args.weight_dtype, c, product);
        set_parameter(args.grad_bias, args.weight_dtype, c, sum);
      }
    });
  }
};

template <class T>
void backward_planes(const GroupNormBackwardArgs& args, const BackwardData<T>& data) {
  using A = Accumulate<T>;
  const GroupNormShape& shape = args.shape;
  const int64_t columns = shape.channels_of_group(), spatial = shape.spatial;
  Carver scratch(Sums<A>::bytes(shape), 4);
  Sums<A> known(args, scratch);
  const Runs runs{1, spatial, 0};
  const int64_t next = ahead(columns * spatial, 2 * columns * spatial * sizeof(T));
  for_each_unit(
      shape.batch * shape.groups, columns, columns * spatial,
      [&](int64_t group, int64_t i) {
        const int64_t plane = group * columns + i;
        const auto [sum, product] =
            sum_gradient_runs(data.from(plane * spatial), runs, {known.mean(group), A(1), A(0)});
        known.sums[plane] = sum;
        known.products[plane] = product;
      },
      [&](int64_t group) { known.finish_group(group); },
      [&](int64_t group, int64_t i) {
        if (data.grad_input == nullptr) return;
        const int64_t plane = group * columns + i;
        differentiate_runs(data.from(plane * spatial), runs, {known.mean(group), A(1), A(0)},
                           known.factors(group, plane % shape.channels), next);
      });
  known.finish_parameters();
}

template <class T>
void backward_samples(const GroupNormBackwardArgs& args, const BackwardData<T>& data) {
  using A = Accumulate<T>;
  const GroupNormShape& shape = args.shape;
  const Samples samples(shape);
  const int64_t channels = shape.channels, columns = shape.channels_of_group();
  const int64_t of_sample = 2 * channels * samples.ranges;
  Carver scratch(
      Sums<A>::bytes(shape) + shape.batch * (of_sample * sizeof(double) + 4 * channels * sizeof(A)),
      6);
  Sums<A> known(args, scratch);
  double* const all_ranges = scratch.take<double>(shape.batch * of_sample);
  A* const all_factors = scratch.take<A>(shape.batch * 4 * channels);
  for (int64_t i = 0; i < shape.batch * channels; ++i) {
    const int64_t group = i / columns;
    all_factors[i / channels * 4 * channels + i % channels] = known.mean(group);
  }
  const auto start_of = [&](int64_t sample, int64_t range) {
    return sample * samples.elements() + samples.first_row(range) * channels;
  };
  for_each_unit(
      shape.batch, samples.ranges, samples.elements(),
      [&](int64_t sample, int64_t range) {
        const int64_t rows = samples.first_row(range + 1) - samples.first_row(range);
        const A* const mean = all_factors + sample * 4 * channels;
        double* const sums = all_ranges + sample * of_sample + range * 2 * channels;
        samples.for_tiles([&](int64_t col, int64_t width) {
          sum_gradient_columns(data.from(start_of(sample, range) + col), rows, width, channels,
                               {mean + col, mean + col, mean + col}, sums + col,
                               sums + channels + col);
        });
      },
      [&](int64_t sample) {
        for (int64_t c = 0; c < channels; ++c) {
          double sum = 0, product = 0;
          for (int64_t range = 0; range < samples.ranges; ++range) {
            const double* const sums = all_ranges + sample * of_sample + range * 2 * channels;
            sum += sums[c];
            product += sums[channels + c];
          }
          known.sums[sample * channels + c] = sum;
          known.products[sample * channels + c] = product;
        }
        A* const mean = all_factors + sample * 4 * channels;
        for (int64_t i = 0; i < shape.groups; ++i) {
          const int64_t group = sample * shape.groups + i;
          known.finish_group(group);
          for (int64_t c = i * columns; c < (i + 1) * columns; ++c) {
            const BackwardFactors<A> factors = known.factors(group, c);
            mean[channels + c] = factors.slope;
            mean[2 * channels + c] = factors.pull;
            mean[3 * channels + c] = factors.offset;
          }
        }
      },
      [&](int64_t sample, int64_t range) {
        if (data.grad_input == nullptr) return;
        const A* const mean = all_factors + sample * 4 * channels;
        differentiate_rows(data.from(start_of(sample, range)),
                           samples.first_row(range + 1) - samples.first_row(range), channels,
                           {mean, mean, mean},
                           {mean + channels, mean + 2 * channels, mean + 3 * channels});
      });
  known.finish_parameters();
}

}  // namespace
}  // namespace CPU_CAPABILITY

template <>
void group_norm_backward<kBuildIsa>(const GroupNormBackwardArgs& args) {
  dispatch_dtype<CpuTypes>(args.dtype, [&]<class T> {
    BackwardData<T> data{static_cast<const T*>(args.grad_output),
                         static_cast<const T*>(args.input),
                         nullptr,
                         static_cast<T*>(args.grad_input),
                         nullptr,
                         false,
                         worth_streaming(3 * args.shape.elements() * int64_t{sizeof(T)})};
    if (args.shape.channels_last || args.shape.spatial == 1) {
      data.streaming = data.streaming && rows_are_aligned(data.written(), args.shape.channels);
      backward_samples<T>(args, data);
    } else {
      backward_planes<T>(args, data);
    }
  });
}

}  // namespace fastdl
