// Batch norm on CPU, with an optional residual and ReLU behind it, backward. With g = dy where the
// ReLU was open (its output > 0, computed again from x unless there was a residual):
//   x^ = (x - mean) rstd,  dweight = sum g x^,  dbias = sum g,  dresidual = g
//   training    dx = weight rstd (g - mean(g) - x^ mean(g x^))
//   evaluation  dx = weight rstd g
// Work is split as in batch_norm_forward_cpu.cpp. dy and x (and y after a residual) are read twice,
// in NCHW the second time from the cache where a thread has a channel that fits; once in evaluation
// without parameters' gradients. Channels last with a residual, tensors larger than the cache: the
// first pass writes g, which the second one reads instead of dy and y (7 moves instead of 8).
#include "batch_norm/batch_norm_cpu.h"

namespace fastdl {
inline namespace CPU_CAPABILITY {
namespace {

// What is known of the channels: arrays of [cols], of which channel c has c, c + channels, ..
template <class A>
struct BackwardChannels {
  const BatchNormBackwardArgs& args;
  A *mean, *scale, *shift, *slope, *pull, *offset;

  BackwardChannels(const BatchNormBackwardArgs& args, Carver& scratch, int64_t cols) : args(args) {
    for (A** array : {&mean, &scale, &shift, &slope, &pull, &offset}) {
      *array = scratch.take<A>(cols);
    }
    const int64_t channels = args.shape.channels;
    parallel_for(0, channels, kChannelGrain, [&](int64_t begin, int64_t end) {
      for (int64_t c = begin; c < end; ++c) {
        mean[c] = static_cast<const A*>(args.mean)[c];
        scale[c] = static_cast<const A*>(args.rstd)[c] *
                   static_cast<A>(parameter(args.weight, args.weight_dtype, c, 1));
        shift[c] = static_cast<A>(parameter(args.bias, args.weight_dtype, c, 0));
      }
    });
    for (A* array : {mean, scale, shift}) repeat_channels(array, channels, cols);
  }

  ForwardFactors<A> at(int64_t c) const { return {mean[c], scale[c], shift[c]}; }
  BackwardFactors<A> gradient_at(int64_t c) const { return {slope[c], pull[c], offset[c]}; }

  // From the sums of g and of g (x - mean)
  void set(int64_t c, double sum, double product) {
    const double rstd = static_cast<const A*>(args.rstd)[c];
    const double count = static_cast<double>(args.shape.batch * args.shape.spatial);
    set_parameter(args.grad_weight, args.weight_dtype, c, product * rstd);
    set_parameter(args.grad_bias, args.weight_dtype, c, sum);
    slope[c] = scale[c];
    pull[c] = args.training ? static_cast<A>(-scale[c] * (product / count * rstd * rstd)) : 0;
    offset[c] = args.training ? static_cast<A>(-scale[c] * (sum / count)) : 0;
  }
};

bool needs_sums(const BatchNormBackwardArgs& args) {
  return args.training || args.grad_weight != nullptr || args.grad_bias != nullptr;
}

bool writes_elements(const BatchNormBackwardArgs& args) {
  return args.grad_input != nullptr || args.grad_residual != nullptr;
}

template <class T>
void backward_planes(const BatchNormBackwardArgs& args, const BackwardData<T>& data) {
  using A = Accumulate<T>;
  const Planes planes(args.shape);
  const int64_t channels = args.shape.channels;
  Carver scratch(channels * (6 * sizeof(A) + planes.parts * 2 * sizeof(double)), 7);
  auto* const of_parts = scratch.take<std::array<double, 2>>(channels * planes.parts);
  BackwardChannels<A> known(args, scratch, channels);
  const int64_t elements = args.shape.batch * args.shape.spatial;
  const int64_t next = ahead(args.shape.spatial, 2 * elements * sizeof(T));
  for_each_unit(
      channels, planes.parts, elements,
      [&](int64_t c, int64_t number) {
        if (!needs_sums(args)) return;
        const Part part = planes.part(c, number);
        of_parts[c * planes.parts + number] =
            sum_gradient_runs(data.from(part.offset), part.runs, known.at(c));
      },
      [&](int64_t c) {
        std::array<double, 2> all{};
        for (int64_t p = 0; needs_sums(args) && p < planes.parts; ++p) {
          for (int t = 0; t < 2; ++t) all[t] += of_parts[c * planes.parts + p][t];
        }
        known.set(c, all[0], all[1]);
      },
      [&](int64_t c, int64_t number) {
        if (!writes_elements(args)) return;
        const Part part = planes.part(c, number);
        differentiate_runs(data.from(part.offset), part.runs, known.at(c), known.gradient_at(c),
                           next);
      });
}

template <class T>
void backward_rows(const BatchNormBackwardArgs& args, const BackwardData<T>& data) {
  using A = Accumulate<T>;
  const Rows rows(args.shape);
  const int64_t cols = rows.cols, channels = rows.channels;
  Carver scratch(cols * (6 * sizeof(A) + (rows.ranges + 1) * 2 * sizeof(double)), 7);
  double* const of_ranges = scratch.take<double>((rows.ranges + 1) * 2 * cols);
  double* const all = of_ranges + rows.ranges * 2 * cols;
  BackwardChannels<A> known(args, scratch, cols);
  std::fill_n(all, 2 * cols, 0.0);
  if (needs_sums(args)) {
    rows.for_each_tile([&](int64_t range, int64_t row, int64_t count, int64_t col, int64_t width) {
      double* const sums = of_ranges + range * 2 * cols + col;
      sum_gradient_columns(data.from(row * cols + col), count, width, cols,
                           {known.mean + col, known.scale + col, known.shift + col}, sums,
                           sums + cols);
      finish_writes();
    });
    rows.for_columns([&](int64_t begin, int64_t end) {
      for (int64_t range = 0; range < rows.ranges; ++range) {
        const double* const sums = of_ranges + range * 2 * cols;
        for (int64_t i = begin; i < end; ++i) {
          all[i] += sums[i];
          all[cols + i] += sums[cols + i];
        }
      }
    });
  }
  parallel_for(0, channels, kChannelGrain, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      double sum = 0, product = 0;
      for (int64_t i = c; i < cols; i += channels) {
        sum += all[i];
        product += all[cols + i];
      }
      known.set(c, sum, product);
    }
  });
  const bool residual_is_written = needs_sums(args) && data.residual_goes_first();
  if (!writes_elements(args) || (residual_is_written && data.grad_input == nullptr)) return;
  for (A* array : {known.slope, known.pull, known.offset}) repeat_channels(array, channels, cols);
  const BackwardData<T> rest = residual_is_written ? data.after_residual() : data;
  rows.for_all_rows([&](int64_t row, int64_t count) {
    differentiate_rows(rest.from(row * cols), count, cols, {known.mean, known.scale, known.shift},
                       {known.slope, known.pull, known.offset});
  });
}

template <class T>
void backward(const BatchNormBackwardArgs& args) {
  BackwardData<T> data{static_cast<const T*>(args.grad_output),
                       static_cast<const T*>(args.input),
                       static_cast<const T*>(args.output),
                       static_cast<T*>(args.grad_input),
                       static_cast<T*>(args.grad_residual),
                       args.relu,
                       worth_streaming(3 * args.shape.elements() * int64_t{sizeof(T)})};
  if (args.shape.channels_last || args.shape.spatial == 1) {
    data.streaming = data.streaming && rows_are_aligned<T>(data.written(), args.shape.channels);
    backward_rows(args, data);
  } else {
    backward_planes(args, data);
  }
}

}  // namespace
}  // namespace CPU_CAPABILITY

template <>
void batch_norm_backward<kBuildIsa>(const BatchNormBackwardArgs& args) {
  dispatch_dtype<CpuTypes>(args.dtype, [&]<class T> { backward<T>(args); });
}

}  // namespace fastdl
