// The arguments of torch's pooling functions as windows, or why native torch must judge them.
#pragma once

#include "pool/pool_torch.h"

namespace fastdl {

// Whether the input is one that kernels take: a batch may be empty, nothing else.
inline const char* reason_of_input(const at::Tensor& input, int64_t dims) {
  if (const char* reason = reason_to_hand_over(input)) return reason;
  if (input.dim() != dims + 1 && input.dim() != dims + 2) return "a wrong number of dimensions";
  for (int64_t d = input.dim() == dims + 2 ? 1 : 0; d < input.dim(); ++d) {
    if (input.size(d) == 0) return "an empty dimension";
  }
  return nullptr;
}

inline constexpr const char* kWrongSizes = "sizes that native torch must judge";

// Fills windows that slide, or says why native torch must compute them.
inline const char* slide(const at::Tensor& input, int64_t dims, const Sizes& kernel_size,
                         const Sizes& stride, const Sizes& padding, const Sizes& dilation,
                         bool ceil_mode, PoolWindows& windows) {
  if (const char* reason = reason_of_input(input, dims)) return reason;
  if (!expand(kernel_size, dims, 1, windows.kernel) ||
      !expand(stride.values.empty() ? kernel_size : stride, dims, 1, windows.stride) ||
      !expand(padding, dims, 0, windows.padding) || !expand(dilation, dims, 1, windows.dilation)) {
    return kWrongSizes;
  }
  for (int64_t d = 0; d < dims; ++d) {
    const int64_t size = input.size(input.dim() - dims + d), step = windows.stride[d];
    const int64_t pad = windows.padding[d];
    const int64_t last = size + 2 * pad - windows.dilation[d] * (windows.kernel[d] - 1) - 1;
    if (2 * pad > windows.kernel[d] || last < 0) return kWrongSizes;
    int64_t output = (last + (ceil_mode ? step - 1 : 0)) / step + 1;
    // Windows begin inside the input or in the padding before it.
    if (ceil_mode && (output - 1) * step >= size + pad) --output;
    windows.output.push_back(output);
    if (pad > 0 && windows.dilation[d] > 1 && windows.dilation[d] >= size) {
      return "dilated windows that may have no element";
    }
  }
  int64_t taps = 1;
  for (const int64_t kernel : windows.kernel) taps *= kernel;
  return taps > kMostTaps ? "windows of more than 2^24 elements" : nullptr;
}

inline const char* adapt(const at::Tensor& input, int64_t dims, const Sizes& output_size,
                         PoolWindows& windows) {
  if (const char* reason = reason_of_input(input, dims)) return reason;
  Sizes sizes = output_size;
  if (sizes.is_int) sizes.values.resize(dims, sizes.values[0]);
  if (static_cast<int64_t>(sizes.values.size()) != dims) return kWrongSizes;
  int64_t taps = 1;
  bool even = true;
  for (int64_t d = 0; d < dims; ++d) {
    const int64_t size = input.size(input.dim() - dims + d);
    if (sizes.values[d] == Sizes::kNoSize) {
      if (dims == 1) return kWrongSizes;
      sizes.values[d] = size;
    }
    taps *= size / std::max<int64_t>(sizes.values[d], 1) + 2;
    even = even && sizes.values[d] > 0 && size % sizes.values[d] == 0;
  }
  if (!expand(sizes, dims, 1, windows.output)) return kWrongSizes;
  if (even) {  // then they slide
    for (int64_t d = 0; d < dims; ++d) {
      windows.kernel.push_back(input.size(input.dim() - dims + d) / windows.output[d]);
    }
    windows.stride = windows.kernel;
    windows.padding.assign(dims, 0);
    windows.dilation.assign(dims, 1);
  }
  return taps > kMostTaps ? "windows of more than 2^24 elements" : nullptr;
}

}  // namespace fastdl
