// Depthwise convolution, forward and backward over the input, NCHW and channels_last:
//   y[n, c, i] = sum over taps t of x[n, c, start + i * stride + t * step] * weight[c, t]
// on both axes; the gradient of the input is the same over grad_output, once for each remainder of
// the strides, whose taps go backwards.
// A thread computes a column of neighbouring rows, of 16 bytes of channels (channels_last) or of
// one channel: taps of the same column share the inputs in registers. Weights of channels_last are
// kept in shared memory, in float32, for all pixels a block works on; those of NCHW come from the
// cache. Memory: inputs are read taps-of-a-row times from the first cache, once from memory. Floor:
// bytes / copy bandwidth up to about 5 x 5 taps, beyond that the multiply-adds in float32.
#include "conv/conv_depthwise_cuda.cuh"

namespace fastdl {
namespace {

// Along an axis: what meets, the taps of the kernel, and where the results lie
struct DepthwiseAxis {
  GatherAxis gather;
  int first_tap, tap_step;
  int first_result, result_step;
};

struct DepthwiseArgs {
  const void *source, *weight;
  void* to;
  const void *bias, *residual;  // or null
  bool relu;
  int n, channels, all_taps, kernel_cols;
  DepthwiseAxis h, w;
  ImageStrides from_strides, to_strides;
  ChannelSlices slices;
  int strips, columns;  // of results: ceil(h.count / rows of a thread), and over all images
};

template <class T, int W>
__device__ __forceinline__ void load_floats(float (&values)[W], const void* data, int64_t at) {
  load_vector<W>(static_cast<const T*>(data) + at).unpack(values);
}

// Results of a thread, of W channels and K x any taps, S rows apart: their inputs fit in registers,
// of which 12 or 16 warps have enough.
template <int W, int K, int S>
struct DepthwiseColumn {
  static constexpr int kRows = W == 1 ? 8 / S : S == 2 || K == 7 ? 3 : 4;
  static constexpr int kBlocks = W * K >= 40 ? 3 : 4;
};

// K = 0: any number of taps, any stride
template <class T, int W, int K, int S>
__global__ void __launch_bounds__(kDepthwiseThreads, DepthwiseColumn<W, K, S>::kBlocks)
    depthwise_column_per_thread(DepthwiseArgs args) {
  constexpr int kRows = DepthwiseColumn<W, K, S>::kRows;
  const GatherAxis &h = args.h.gather, &w = args.w.gather;
  const int lanes = args.slices.lanes, teams = kDepthwiseThreads / lanes;
  const int slice = blockIdx.x % args.slices.count, lane = threadIdx.x % lanes;
  const int channel = (slice * lanes + lane) * W;
  const int taps = h.taps * w.taps;
  const auto weight_of = [&](int c, int row, int col) {
    const int tap = (args.h.first_tap + row * args.h.tap_step) * args.kernel_cols +
                    args.w.first_tap + col * args.w.tap_step;
    return widen(static_cast<const T*>(args.weight)[static_cast<int64_t>(c) * args.all_taps + tap]);
  };
  float* const weights = dynamic_shared<float>();  // [taps, lanes * W]
  if constexpr (W > 1) {
    for (int i = threadIdx.x; i < taps * lanes * W; i += kDepthwiseThreads) {
      const int c = i / taps, tap = i - c * taps;
      const int row = tap / w.taps, of_slice = slice * lanes * W + c;
      weights[tap * lanes * W + c] =
          of_slice < args.channels ? weight_of(of_slice, row, tap - row * w.taps) : 0.0f;
    }
    __syncthreads();
  }
  if (channel >= args.channels) return;

  const int step = static_cast<int>(gridDim.x) / args.slices.count * teams;
  for (int unit = blockIdx.x / args.slices.count * teams + threadIdx.x / lanes; unit < args.columns;
       unit += step) {
    const int line = unit / w.count, x = unit - line * w.count;
    const int image = line / args.strips, y = (line - image * args.strips) * kRows;
    const T* const from = static_cast<const T*>(args.source) + image * args.from_strides.image +
                          channel * args.from_strides.channel;
    float sums[kRows][W] = {};
    const auto load = [&](float (&values)[W], int row, int col) {
      if (is_inside(row, h.source)) {
        load_vector<W>(from + row * args.from_strides.row + col * args.from_strides.col)
            .unpack(values);
      } else {
#pragma unroll
        for (float& value : values) value = 0;
      }
    };
    const auto load_weight = [&](float (&values)[W], int row, int col) {
      if constexpr (W == 1) {
        values[0] = weight_of(channel, row, col);
      } else {
        const float* const at = weights + ((row * w.taps + col) * lanes + lane) * W;
#pragma unroll
        for (int i = 0; i < W; i += 4) {
          const float4 four = *reinterpret_cast<const float4*>(at + i);
          values[i] = four.x;
          values[i + 1] = four.y;
          values[i + 2] = four.z;
          values[i + 3] = four.w;
        }
      }
    };
    const auto add = [&](float (&sum)[W], const float (&values)[W], const float (&factors)[W]) {
#pragma unroll
      for (int i = 0; i < W; ++i) sum[i] = fmaf(values[i], factors[i], sum[i]);
    };
#pragma unroll 1
    for (int t = 0; t < w.taps; ++t) {
      const int col = w.start + x * w.stride + t * w.step;
      if (!is_inside(col, w.source)) continue;
      if constexpr (K > 0) {
        float inputs[(kRows - 1) * S + K][W];
#pragma unroll
        for (int i = 0; i < (kRows - 1) * S + K; ++i) {
          load(inputs[i], h.start + y * S + i, col);
        }
#pragma unroll
        for (int tap = 0; tap < K; ++tap) {
          float factors[W];
          load_weight(factors, tap, t);
#pragma unroll
          for (int i = 0; i < kRows; ++i) add(sums[i], inputs[i * S + tap], factors);
        }
      } else {
#pragma unroll 1
        for (int tap = 0; tap < h.taps; ++tap) {
          float factors[W], inputs[kRows][W];
          load_weight(factors, tap, t);
#pragma unroll
          for (int i = 0; i < kRows; ++i) {
            load(inputs[i], h.start + (y + i) * h.stride + tap * h.step, col);
          }
#pragma unroll
          for (int i = 0; i < kRows; ++i) add(sums[i], inputs[i], factors);
        }
      }
    }

    float bias[W] = {};
    if (args.bias != nullptr) load_floats<T>(bias, args.bias, channel);
    int64_t at = image * args.to_strides.image + channel * args.to_strides.channel +
                 (args.h.first_result + y * args.h.result_step) * args.to_strides.row +
                 (args.w.first_result + x * args.w.result_step) * args.to_strides.col;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      if (y + i < h.count) {
        float residual[W] = {};
        if (args.residual != nullptr) load_floats<T>(residual, args.residual, at);
#pragma unroll
        for (int k = 0; k < W; ++k) {
          float& sum = sums[i][k];
          sum += bias[k] + residual[k];
          if (args.relu) sum = sum > 0 || sum != sum ? sum : 0;  // keeps NaN
        }
        Vector<T, W> result;
        result.pack(sums[i]);
        store_vector<W>(static_cast<T*>(args.to) + at, result);
      }
      at += args.h.result_step * args.to_strides.row;
    }
  }
}

// Of a block's weights in shared memory, so that four blocks fit on every GPU
constexpr int kWeightBytes = 24 * 1024;

// Launches the kernel for its rows of taps. Blocks share a slice's weights over many pixels.
template <class T, int W>
Status launch_depthwise(DepthwiseArgs args, const CudaTarget& target) {
  GatherAxis& h = args.h.gather;
  if (h.step < 0) {  // from the last tap on
    h.start += (h.taps - 1) * h.step;
    h.step = -h.step;
    args.h.first_tap += (h.taps - 1) * args.h.tap_step;
    args.h.tap_step = -args.h.tap_step;
  }
  const int weight_bytes = 4 * W * h.taps * args.w.gather.taps;  // of a thread's channels
  while (W > 1 && args.slices.lanes > 1 && args.slices.lanes * weight_bytes > kWeightBytes) {
    args.slices.lanes /= 2;
    args.slices.count = (args.channels + args.slices.lanes * W - 1) / (args.slices.lanes * W);
  }
  const auto start = [&]<int K, int S> {
    constexpr int kRows = DepthwiseColumn<W, K, S>::kRows;
    args.strips = (h.count + kRows - 1) / kRows;
    args.columns = args.n * args.strips * args.w.gather.count;
    const int64_t teams = kDepthwiseThreads / args.slices.lanes;
    const int64_t most = ceil_divide(16 * int64_t{target.multiprocessors}, args.slices.count);
    const int64_t blocks = std::min(ceil_divide(args.columns, teams), W == 1 ? kMaxBlocks : most);
    const size_t shared = W == 1 ? 0 : size_t{1} * args.slices.lanes * weight_bytes;
    return launch(depthwise_column_per_thread<T, W, K, S>,
                  {blocks * args.slices.count, kDepthwiseThreads, shared}, target, args);
  };
  if (h.count == 0 || args.w.gather.count == 0) return {};
  const bool next = h.step == 1;
  if (next && h.taps == 3 && h.stride == 1) return start.template operator()<3, 1>();
  if (next && h.taps == 3 && h.stride == 2) return start.template operator()<3, 2>();
  if (next && h.taps == 5 && h.stride == 1) return start.template operator()<5, 1>();
  if (next && h.taps == 5 && h.stride == 2) return start.template operator()<5, 2>();
  if (next && h.taps == 7 && h.stride == 1) return start.template operator()<7, 1>();
  return start.template operator()<0, 1>();
}

DepthwiseArgs arguments_of(const ConvShape& shape, const void* source, const void* weight, void* to,
                           int width) {
  DepthwiseArgs args{};
  args.source = source;
  args.weight = weight;
  args.to = to;
  args.n = static_cast<int>(shape.n);
  args.channels = static_cast<int>(shape.out_channels);
  args.all_taps = static_cast<int>(shape.h.kernel * shape.w.kernel);
  args.kernel_cols = static_cast<int>(shape.w.kernel);
  args.slices = slices_of(shape, width);
  return args;
}

}  // namespace

Status depthwise_forward_cuda(const ConvForwardArgs& forward, const CudaTarget& target) {
  Status status;
  const ConvShape& shape = forward.shape;
  const ConvAxis &h = shape.h, &w = shape.w;
  const auto run = [&]<class T, int W> {
    DepthwiseArgs args =
        arguments_of(shape, forward.input, forward.packed_weight, forward.output, W);
    args.bias = forward.bias;
    args.residual = forward.residual;
    args.relu = forward.relu;
    args.h = {forward_axis(h), 0, 1, 0, 1};
    args.w = {forward_axis(w), 0, 1, 0, 1};
    args.from_strides = strides_of(shape.in_channels, h.input, w.input, shape.channels_last);
    args.to_strides = strides_of(shape.in_channels, h.output, w.output, shape.channels_last);
    status = launch_depthwise<T, W>(args, target);
  };
  dispatch_depthwise(shape, forward.dtype, run, static_cast<const char*>(forward.input),
                     static_cast<const char*>(forward.output),
                     static_cast<const char*>(forward.bias),
                     static_cast<const char*>(forward.residual));
  return status;
}

Status depthwise_backward_input_cuda(const ConvBackwardInputArgs& backward,
                                     const CudaTarget& target) {
  Status status;
  const ConvShape& shape = backward.shape;
  const ConvAxis &h = shape.h, &w = shape.w;
  const TapPeriod down = period_of(h), across = period_of(w);
  const auto run = [&]<class T, int W> {
    DepthwiseArgs args =
        arguments_of(shape, backward.grad_output, backward.packed_weight, backward.grad_input, W);
    args.from_strides = strides_of(shape.in_channels, h.output, w.output, shape.channels_last);
    args.to_strides = strides_of(shape.in_channels, h.input, w.input, shape.channels_last);
    for (int i = 0; i < h.stride * w.stride && status.ok(); ++i) {
      const InputAxis rows(h, down, i / static_cast<int>(w.stride));
      const InputAxis cols(w, across, i % static_cast<int>(w.stride));
      args.h = {rows.gather, rows.first_tap, down.taps, rows.first_input,
                static_cast<int>(h.stride)};
      args.w = {cols.gather, cols.first_tap, across.taps, cols.first_input,
                static_cast<int>(w.stride)};
      status = launch_depthwise<T, W>(args, target);
    }
  };
  dispatch_depthwise(shape, backward.dtype, run, static_cast<const char*>(backward.grad_output),
                     static_cast<const char*>(backward.grad_input));
  return status;
}

}  // namespace fastdl
