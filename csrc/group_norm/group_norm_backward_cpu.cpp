// Group norm on CPU, backward: for each sample and group of channels, with x^ = (x - mean) rstd
//   dx = rstd (dy weight - mean(dy weight) - x^ mean(dy weight x^))
//   dweight = sum over samples and space of dy x^,  dbias = sum of dy
// The sums of dy and dy (x - mean) over each plane (channels last: over each column of a sample)
// are kept in double, and give all of these. Work is split as in group_norm_forward_cpu.cpp, but a
// group's parts are whole planes: 3 moves of the tensor while a group (or sample) fits the cache,
// else 5. Of short planes, neither sums nor factors are by plane: a group is one row, and what the
// parameters' gradients need is added up by element over samples.
#include "group_norm/group_norm_cpu.h"
#include "group_norm/group_norm_short_planes_cpu.h"

namespace fastdl {
inline namespace CPU_CAPABILITY {
namespace {

// Sums by sample and channel, and what they give for each group.
template <class A>
struct Sums {
  const GroupNormBackwardArgs& args;
  double *sums, *products;  // [batch, channels]
  A *pull, *offset;         // [batch, groups]
  A* weight;                // [channels]

  Sums(const GroupNormBackwardArgs& args, Carver& scratch) : args(args) {
    const GroupNormShape& shape = args.shape;
    sums = scratch.take<double>(shape.batch * shape.channels);
    products = scratch.take<double>(shape.batch * shape.channels);
    pull = scratch.take<A>(shape.batch * shape.groups);
    offset = scratch.take<A>(shape.batch * shape.groups);
    weight = scratch.take<A>(shape.channels);
    read_parameter(args.weight, args.weight_dtype, shape.channels, 1, A(1), weight);
  }
  static size_t bytes(const GroupNormShape& shape) {
    return shape.batch * (2 * shape.channels * sizeof(double) + 2 * shape.groups * sizeof(A)) +
           shape.channels * sizeof(A);
  }

  A mean(int64_t group) const { return static_cast<const A*>(args.mean)[group]; }
  A rstd(int64_t group) const { return static_cast<const A*>(args.rstd)[group]; }

  void finish_group(int64_t group) {
    const GroupNormShape& shape = args.shape;
    const int64_t columns = shape.channels_of_group(), first = group % shape.groups * columns;
    double sum = 0, product = 0;
    for (int64_t i = 0; i < columns; ++i) {
      sum += weight[first + i] * sums[group * columns + i];
      product += weight[first + i] * products[group * columns + i];
    }
    const double count = static_cast<double>(columns * shape.spatial), scale = rstd(group);
    pull[group] = static_cast<A>(-product / count * scale * scale * scale);
    offset[group] = static_cast<A>(-sum / count * scale);
  }

  // Of a channel (in the first sample, others are `channels` further)
  BackwardFactors<A> factors(int64_t group, int64_t channel) const {
    return {weight[channel] * rstd(group), pull[group], offset[group]};
  }

  void finish_parameters() const {
    if (args.grad_weight == nullptr && args.grad_bias == nullptr) return;
    const GroupNormShape& shape = args.shape;
    parallel_for(0, shape.channels, kGrain / shape.batch + 1, [&](int64_t begin, int64_t end) {
      for (; begin < end; begin += kColumns) finish_tile(begin, std::min(end, begin + kColumns));
    });
  }

 private:
  void finish_tile(int64_t begin, int64_t end) const {
    double of_channels[2][kColumns] = {};
    const int64_t channels = args.shape.channels, columns = args.shape.channels_of_group();
    for (int64_t sample = 0; sample < args.shape.batch; ++sample) {
      const double* const sum = sums + sample * channels;
      const double* const product = products + sample * channels;
      for (int64_t first = begin; first < end;) {
        const int64_t group = first / columns, past = std::min(end, (group + 1) * columns);
        const double scale = rstd(sample * args.shape.groups + group);
        for (int64_t c = first; c < past; ++c) {
          of_channels[0][c - begin] += sum[c];
          of_channels[1][c - begin] += product[c] * scale;
        }
        first = past;
      }
    }
    for (int64_t c = begin; c < end; ++c) {
      set_parameter(args.grad_weight, args.weight_dtype, c, of_channels[1][c - begin]);
      set_parameter(args.grad_bias, args.weight_dtype, c, of_channels[0][c - begin]);
    }
  }
};

// The sums of dy and of dy (x - mean) of a plane, and dx once the group's are known; what is common
// to a group's planes is with them.
template <class T>
class GroupPlanes {
 public:
  using A = Accumulate<T>;
  using V = Vec<T>;
  const T *grad_output, *input;
  T* grad_input;
  int64_t spatial, next;
  bool streaming;

  GroupPlanes(const BackwardData<T>& data, int64_t spatial, int64_t next)
      : grad_output(data.grad_output),
        input(data.input),
        grad_input(data.grad_input),
        spatial(spatial),
        next(next),
        streaming(data.streaming && worth_streaming_runs<T>({1, spatial, 0})) {}

  void sum(int64_t first, int64_t end, A mean, double* sums, double* products) const {
    for (int64_t plane = first; plane < end; ++plane) {
      const T* const grads = grad_output + plane * spatial;
      const T* const values = input + plane * spatial;
      std::array<double, 2> totals{};
      if (spatial <= kFewElements) {
        totals = sum_few(grads, values, mean);
      } else {
        for_chunks(Runs{1, spatial, 0}, [&](int64_t offset, const Runs& chunk) {
          const V center(mean);
          const auto of_chunk = sum_runs<T>(chunk, [=](int64_t i, auto count, V& sum, V& product) {
            add(grads + offset + i, values + offset + i, count, mean, center, sum, product);
          });
          for (int t = 0; t < 2; ++t) totals[t] += of_chunk[t];
        });
      }
      sums[plane] = totals[0];
      products[plane] = totals[1];
    }
  }

  void write(int64_t plane, A mean, BackwardFactors<A> factors) const {
    const V center(mean), slope(factors.slope), pull(factors.pull), shift(factors.offset);
    const T* const grads = grad_output + plane * spatial;
    const T* const values = input + plane * spatial;
    T* const out = grad_input + plane * spatial;
    const int64_t distance = next;
    const bool stream = streaming;
    for_output_run(out, spatial, stream, [=](int64_t i, auto count) {
      prefetch(values + i + distance);
      prefetch(grads + i + distance);
      const V grad = load_vector(grads + i, count, A(0));
      const V centred = load_vector(values + i, count, A(0)) - center;
      write_vector(out + i, at::vec::fmadd(grad, slope, at::vec::fmadd(centred, pull, shift)),
                   count, stream);
    });
  }

 private:
  static constexpr int64_t kFewElements = 256;

  template <class Count>
  static void add(const T* grads, const T* values, Count count, A mean, V center, V& sum,
                  V& product) {
    const V grad = load_vector(grads, count, A(0));
    sum = sum + grad;
    product = at::vec::fmadd(grad, load_vector(values, count, mean) - center, product);
  }

  // As sum_runs, of whose time so few elements are the smaller part: half of the accumulators
  std::array<double, 2> sum_few(const T* grads, const T* values, A mean) const {
    constexpr int64_t width = kWidth<T>;
    const V center(mean);
    V sums[2]{V(A(0)), V(A(0))}, products[2]{V(A(0)), V(A(0))};
    int64_t i = 0;
    for (; i + 2 * width <= spatial; i += 2 * width) {
      add(grads + i, values + i, kWhole, mean, center, sums[0], products[0]);
      add(grads + i + width, values + i + width, kWhole, mean, center, sums[1], products[1]);
    }
    if (i + width <= spatial) {
      add(grads + i, values + i, kWhole, mean, center, sums[0], products[0]);
      i += width;
    }
    if (i < spatial) {
      const int64_t last = spatial - width;  // kShortPlane is more than a vector
      const Overlapping<V> open{V::arange(A(0), A(1)) >= V(static_cast<A>(i - last))};
      add(grads + last, values + last, open, mean, center, sums[1], products[1]);
    }
    return reduce_sums(sums[0] + sums[1], products[0] + products[1]);
  }
};

template <class T>
void backward_planes(const GroupNormBackwardArgs& args, const BackwardData<T>& data) {
  using A = Accumulate<T>;
  const GroupNormShape& shape = args.shape;
  const int64_t columns = shape.channels_of_group(), spatial = shape.spatial;
  const int64_t parts = std::clamp<int64_t>(columns * spatial / kGrain, 1, columns);  // of a group
  Carver scratch(Sums<A>::bytes(shape), 5);
  Sums<A> known(args, scratch);
  const GroupPlanes<T> planes(data, spatial,
                              ahead(columns * spatial, 2 * columns * spatial * sizeof(T)));
  for_each_unit(
      shape.batch * shape.groups, parts, columns * spatial,
      [&](int64_t group, int64_t part) {
        const int64_t first = group * columns;
        planes.sum(first + part_begin(columns, part, parts),
                   first + part_begin(columns, part + 1, parts), known.mean(group), known.sums,
                   known.products);
      },
      [&](int64_t group) { known.finish_group(group); },
      [&](int64_t group, int64_t part) {
        if (data.grad_input == nullptr) return;
        const int64_t first = group % shape.groups * columns;
        const int64_t end = part_begin(columns, part + 1, parts);
        for (int64_t i = part_begin(columns, part, parts); i < end; ++i) {
          planes.write(group * columns + i, known.mean(group), known.factors(group, first + i));
        }
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
      7);
  Sums<A> known(args, scratch);
  double* const all_ranges = scratch.take<double>(shape.batch * of_sample);
  A* const all_factors = scratch.take<A>(shape.batch * 4 * channels);
  for (int64_t group = 0; group < shape.batch * shape.groups; ++group) {
    const int64_t sample = group / shape.groups, first = group % shape.groups * columns;
    std::fill_n(all_factors + sample * 4 * channels + first, columns, known.mean(group));
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
    if (args.shape.channels_last) {
      data.streaming = data.streaming && rows_are_aligned<T>(data.written(), args.shape.channels);
      backward_samples<T>(args, data);
    } else if (has_short_planes(args.shape)) {
      ShortPlanes<T>{args, data}.run();
    } else {
      backward_planes<T>(args, data);
    }
  });
}

}  // namespace fastdl
