// Group norm's backward on CPU where planes are short (see has_short_planes): a group is one row. A
// task is a range of samples times a block of groups, of which it adds up what the parameters'
// gradients need, by element of the block's rows. Formulas: group_norm_backward_cpu.cpp.
#pragma once

#include "group_norm/group_norm_cpu.h"

namespace fastdl {
inline namespace CPU_CAPABILITY {

template <class T>
struct ShortPlanes {
  using A = Accumulate<T>;
  using V = Vec<T>;
  static constexpr int64_t kSamples = 16;  // of a range: added in float before going on in double

  const GroupNormBackwardArgs& args;
  const BackwardData<T>& data;
  const GroupNormShape& shape = args.shape;
  const int64_t columns = shape.channels_of_group(), cols = columns * shape.spatial;
  const int64_t width = shape.channels * shape.spatial;  // of a sample
  const int64_t ranges = (shape.batch + kSamples - 1) / kSamples;
  A *weight = nullptr, *of_ranges = nullptr;  // [width], [ranges, 2, width]

  void run() {
    Carver scratch((2 * ranges + 1) * width * sizeof(A), 2);
    weight = scratch.take<A>(width);
    of_ranges = scratch.take<A>(2 * ranges * width);
    read_parameter(args.weight, args.weight_dtype, shape.channels, shape.spatial, A(1), weight);
    const int64_t of_block = std::clamp<int64_t>(1024 / cols, 1, shape.groups);
    const int64_t blocks = (shape.groups + of_block - 1) / of_block;
    const int64_t elements = std::min(kSamples, shape.batch) * of_block * cols;
    parallel_for(0, ranges * blocks, std::max<int64_t>(1, kGrain / elements),
                 [&](int64_t begin, int64_t end) {
                   for (int64_t i = begin; i < end; ++i) {
                     const int64_t first = i % blocks * of_block;
                     add_block(i / blocks, first, std::min(first + of_block, shape.groups));
                   }
                 });
    finish_parameters();
  }

  void add_block(int64_t range, int64_t first_group, int64_t end_group) const {
    A* const sums = of_ranges + range * 2 * width;
    for (A* of : {sums, sums + width}) {
      std::fill(of + first_group * cols, of + end_group * cols, A(0));
    }
    const int64_t end = std::min((range + 1) * kSamples, shape.batch);
    for (int64_t sample = range * kSamples; sample < end; ++sample) {
      for (int64_t group = first_group; group < end_group; ++group) {
        add_group(sample * shape.groups + group, weight + group * cols, sums + group * cols);
      }
    }
  }

  void add_group(int64_t group, const A* weights, A* sums) const {
    const A mean = static_cast<const A*>(args.mean)[group];
    const A rstd = static_cast<const A*>(args.rstd)[group];
    const BackwardData<T> row = data.from(group * cols);
    const V center(mean), scale(rstd);
    double total = 0, total_product = 0;
    for_chunks(Runs{1, cols, 0}, [&](int64_t offset, const Runs& chunk) {
      const auto [sum, product] = sum_runs<T>(chunk, [&](int64_t i, auto count, V& sum, V& other) {
        const V grad = load_vector(row.grad_output + offset + i, count, A(0)) *
                       load_vector(weights + offset + i, count, A(0));
        sum = sum + grad;
        other =
            at::vec::fmadd(grad, load_vector(row.input + offset + i, count, mean) - center, other);
      });
      total += sum;
      total_product += product;
    });
    const double factor = static_cast<double>(rstd) / static_cast<double>(cols);
    const V pull(static_cast<A>(-total_product * factor * rstd * rstd));
    const V shift(static_cast<A>(-total * factor));
    for_single_vectors<T>(cols, [&](int64_t i, auto count) {
      const V grad = load_vector(row.grad_output + i, count, A(0));
      const V centred = load_vector(row.input + i, count, mean) - center;
      store_vector(sums + i, load_vector(sums + i, count, A(0)) + grad, count);
      store_vector(
          sums + width + i,
          at::vec::fmadd(grad, centred * scale, load_vector(sums + width + i, count, A(0))), count);
      if (row.grad_input == nullptr) return;
      const V slope = load_vector(weights + i, count, A(0)) * scale;
      store_vector(row.grad_input + i,
                   at::vec::fmadd(grad, slope, at::vec::fmadd(centred, pull, shift)), count);
    });
  }

  void finish_parameters() const {
    if (args.grad_weight == nullptr && args.grad_bias == nullptr) return;
    const int64_t spatial = shape.spatial;
    parallel_for(0, shape.channels, kGrain / (2 * ranges * spatial) + 1,
                 [&](int64_t begin, int64_t end) {
                   for (int64_t c = begin; c < end; ++c) {
                     double sum = 0, product = 0;
                     for (int64_t range = 0; range < ranges; ++range) {
                       const A* const sums = of_ranges + range * 2 * width + c * spatial;
                       for (int64_t i = 0; i < spatial; ++i) {
                         sum += sums[i];
                         product += sums[width + i];
                       }
                     }
                     set_parameter(args.grad_weight, args.weight_dtype, c, product);
                     set_parameter(args.grad_bias, args.weight_dtype, c, sum);
                   }
                 });
  }
};

}  // namespace CPU_CAPABILITY
}  // namespace fastdl
