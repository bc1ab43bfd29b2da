// torch ops of pooling: checks and allocation. Autograd and entry points: pool_autograd.cpp.
#include "pool/pool_torch.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include "torch/run_kernel.h"

namespace fastdl {
namespace {

using at::IntArrayRef;
using at::MemoryFormat;
using at::Tensor;
using c10::SymInt;

// Whether every window has an element, which only dilated ones may lack.
bool all_windows_have_elements(const PoolAxis& axis) {
  if ((axis.output - 1) * axis.stride - axis.padding >= axis.input) return false;
  if (axis.dilation == 1) return true;
  for (int64_t start = -axis.padding, i = 0; start < 0 && i < axis.output; ++i) {
    const int64_t first = (-start + axis.dilation - 1) / axis.dilation;
    if (first >= axis.kernel || start + first * axis.dilation >= axis.input) return false;
    start += axis.stride;
  }
  return true;
}

PoolAxis axis_of(int64_t input, const PoolWindows& windows, size_t d) {
  PoolAxis axis{input, windows.output[d], 0, 1, 0, 1};
  TORCH_CHECK(axis.input > 0 && axis.output > 0, "fastdl: pooling of size ", axis.input, " to ",
              axis.output);
  if (windows.kernel.empty()) return axis;
  axis.kernel = windows.kernel[d];
  axis.stride = windows.stride[d];
  axis.padding = windows.padding[d];
  axis.dilation = windows.dilation[d];
  TORCH_CHECK(axis.kernel > 0 && axis.stride > 0 && axis.dilation > 0 && axis.padding >= 0 &&
                  2 * axis.padding <= axis.kernel && all_windows_have_elements(axis),
              "fastdl: no pooling has these windows");
  return axis;
}

PoolWindows windows_from(IntArrayRef kernel, IntArrayRef stride, IntArrayRef padding,
                         IntArrayRef dilation, IntArrayRef output) {
  const size_t dims = output.size(), each = kernel.empty() ? 0 : dims;
  TORCH_CHECK((dims == 1 || dims == 2) && kernel.size() == each && stride.size() == each &&
                  padding.size() == each && dilation.size() == each,
              "fastdl: windows of pooling need 1 or 2 numbers each");
  return {kernel.vec(), stride.vec(), padding.vec(), dilation.vec(), output.vec()};
}

bool is_channels_last(const Tensor& x) {
  return x.dim() == 4 && x.suggest_memory_format() == MemoryFormat::ChannelsLast;
}

MemoryFormat format_of(bool channels_last) {
  return channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
}

DType dtype_of(const Tensor& x) {
  const auto dtype = kernel_dtype(x.scalar_type());
  TORCH_CHECK_NOT_IMPLEMENTED(dtype, "fastdl: no pooling kernel for ", x.scalar_type());
  return *dtype;
}

// The sizes with other ones at the end.
template <class T, class U>
std::vector<T> with_last(c10::ArrayRef<T> sizes, c10::ArrayRef<U> last) {
  TORCH_CHECK(sizes.size() >= last.size(), "fastdl: too few dimensions for this pooling");
  std::vector<T> result = sizes.slice(0, sizes.size() - last.size()).vec();
  result.insert(result.end(), last.begin(), last.end());
  return result;
}

Tensor empty_output(const Tensor& x, IntArrayRef sizes, at::ScalarType dtype, bool channels_last) {
  return at::empty(sizes, x.options().dtype(dtype), format_of(channels_last));
}

at::ScalarType offset_dtype(const PoolShape& shape) {
  return has_byte_offsets(shape) ? at::kByte : at::kInt;
}

// output, offsets
std::tuple<Tensor, Tensor> run_max_pool(const Tensor& input, const PoolWindows& windows,
                                        bool wants_offsets) {
  const bool channels_last = is_channels_last(input);
  MaxPoolForwardArgs args;
  args.shape = pool_shape(input.sizes(), windows, channels_last);
  args.dtype = dtype_of(input);
  const Tensor x = aligned_on_gpu(input.contiguous(format_of(channels_last)));
  const auto sizes = with_last(x.sizes(), IntArrayRef(windows.output));
  const Tensor output = empty_output(x, sizes, x.scalar_type(), channels_last);
  Tensor offsets;
  if (wants_offsets) offsets = empty_output(x, sizes, offset_dtype(args.shape), channels_last);
  args.input = x.const_data_ptr();
  args.output = output.mutable_data_ptr();
  args.offsets = wants_offsets ? offsets.mutable_data_ptr() : nullptr;
  if (output.numel() > 0) {
    run_kernel(
        x, [&]<CpuIsa isa> { max_pool_forward<isa>(args); },
        [&](const auto& target) { return max_pool_forward_cuda(args, target); });
  }
  return {output, offsets};
}

Tensor max_pool_kernel(const Tensor& input, IntArrayRef kernel, IntArrayRef stride,
                       IntArrayRef padding, IntArrayRef dilation, IntArrayRef output) {
  const auto windows = windows_from(kernel, stride, padding, dilation, output);
  return std::get<0>(run_max_pool(input, windows, false));
}

std::tuple<Tensor, Tensor> max_pool_forward_kernel(const Tensor& input, IntArrayRef kernel,
                                                   IntArrayRef stride, IntArrayRef padding,
                                                   IntArrayRef dilation, IntArrayRef output) {
  const auto windows = windows_from(kernel, stride, padding, dilation, output);
  return run_max_pool(input, windows, true);
}

Tensor max_pool_indices_kernel(const Tensor& offsets, IntArrayRef input_size, IntArrayRef kernel,
                               IntArrayRef stride, IntArrayRef padding, IntArrayRef dilation,
                               IntArrayRef output, bool channels_last) {
  const auto windows = windows_from(kernel, stride, padding, dilation, output);
  MaxPoolIndicesArgs args;
  args.shape = pool_shape(input_size, windows, channels_last);
  TORCH_CHECK(offsets.sizes() == IntArrayRef(with_last(input_size, output)) &&
                  offsets.scalar_type() == offset_dtype(args.shape),
              "fastdl::max_pool_indices: offsets have size ", offsets.sizes());
  const Tensor from = aligned_on_gpu(offsets.contiguous(format_of(channels_last)));
  const Tensor indices = empty_output(from, from.sizes(), at::kLong, channels_last);
  args.offsets = from.const_data_ptr();
  args.indices = indices.mutable_data_ptr<int64_t>();
  if (indices.numel() > 0) {
    run_kernel(
        from, [&]<CpuIsa isa> { max_pool_indices<isa>(args); },
        [&](const auto& target) { return max_pool_indices_cuda(args, target); });
  }
  return indices;
}

Tensor max_pool_backward_kernel(const Tensor& grad_output, const Tensor& offsets,
                                IntArrayRef input_size, IntArrayRef kernel, IntArrayRef stride,
                                IntArrayRef padding, IntArrayRef dilation, IntArrayRef output,
                                bool channels_last) {
  const auto windows = windows_from(kernel, stride, padding, dilation, output);
  MaxPoolBackwardArgs args;
  args.shape = pool_shape(input_size, windows, channels_last);
  args.dtype = dtype_of(grad_output);
  const auto sizes = with_last(input_size, output);
  TORCH_CHECK(grad_output.sizes() == IntArrayRef(sizes) && offsets.sizes() == IntArrayRef(sizes) &&
                  offsets.scalar_type() == offset_dtype(args.shape) &&
                  offsets.device() == grad_output.device(),
              "fastdl::max_pool_backward: grad_output and offsets must be of size ", sizes);
  const MemoryFormat format = format_of(channels_last);
  const Tensor dy = aligned_on_gpu(grad_output.contiguous(format));
  const Tensor saved = aligned_on_gpu(offsets.contiguous(format));
  const Tensor grad_input = empty_output(dy, input_size, dy.scalar_type(), channels_last);
  args.grad_output = dy.const_data_ptr();
  args.offsets = saved.const_data_ptr();
  args.grad_input = grad_input.mutable_data_ptr();
  if (grad_input.numel() > 0) {
    run_kernel(
        dy, [&]<CpuIsa isa> { max_pool_backward<isa>(args); },
        [&](const auto& target) { return max_pool_backward_cuda(args, target); });
  }
  return grad_input;
}

// forward: input to output; backward: grad_output to grad_input
Tensor run_average(const Tensor& from, AveragePoolArgs& args, bool count_include_pad,
                   int64_t divisor, IntArrayRef to_size, bool channels_last, bool backward) {
  args.count_include_pad = count_include_pad;
  args.divisor = divisor;
  args.dtype = dtype_of(from);
  const Tensor x = aligned_on_gpu(from.contiguous(format_of(channels_last)));
  const Tensor result = empty_output(x, to_size, x.scalar_type(), channels_last);
  args.input = x.const_data_ptr();
  args.output = result.mutable_data_ptr();
  if (result.numel() == 0) return result;
  run_kernel(
      x,
      [&]<CpuIsa isa> {
        backward ? average_pool_backward<isa>(args) : average_pool_forward<isa>(args);
      },
      [&](const auto& target) {
        return backward ? average_pool_backward_cuda(args, target)
                        : average_pool_forward_cuda(args, target);
      });
  return result;
}

void check_average(IntArrayRef dilation) {
  for (const int64_t d : dilation) TORCH_CHECK(d == 1, "fastdl: average pooling has no dilation");
}

Tensor avg_pool_kernel(const Tensor& input, IntArrayRef kernel, IntArrayRef stride,
                       IntArrayRef padding, IntArrayRef dilation, IntArrayRef output,
                       bool count_include_pad, int64_t divisor) {
  check_average(dilation);
  const auto windows = windows_from(kernel, stride, padding, dilation, output);
  const bool channels_last = is_channels_last(input);
  AveragePoolArgs args;
  args.shape = pool_shape(input.sizes(), windows, channels_last);
  return run_average(input, args, count_include_pad, divisor, with_last(input.sizes(), output),
                     channels_last, /*backward=*/false);
}

Tensor avg_pool_backward_kernel(const Tensor& grad_output, IntArrayRef input_size,
                                IntArrayRef kernel, IntArrayRef stride, IntArrayRef padding,
                                IntArrayRef dilation, IntArrayRef output, bool count_include_pad,
                                int64_t divisor, bool channels_last) {
  check_average(dilation);
  const auto windows = windows_from(kernel, stride, padding, dilation, output);
  AveragePoolArgs args;
  args.shape = pool_shape(input_size, windows, channels_last);
  TORCH_CHECK(grad_output.sizes() == IntArrayRef(with_last(input_size, output)),
              "fastdl::avg_pool_backward: grad_output has size ", grad_output.sizes());
  return run_average(grad_output, args, count_include_pad, divisor, input_size, channels_last,
                     /*backward=*/true);
}

// ---- fake tensors

Tensor max_pool_meta(const Tensor& input, IntArrayRef, IntArrayRef, IntArrayRef, IntArrayRef,
                     IntArrayRef output) {
  return at::empty_symint(with_last(input.sym_sizes(), output), input.options(),
                          format_of(is_channels_last(input)));
}

std::tuple<Tensor, Tensor> max_pool_forward_meta(const Tensor& input, IntArrayRef kernel,
                                                 IntArrayRef stride, IntArrayRef padding,
                                                 IntArrayRef dilation, IntArrayRef output) {
  Tensor y = max_pool_meta(input, kernel, stride, padding, dilation, output);
  // Adaptive windows are as large as the input makes them; here its sizes are known only roughly.
  PoolShape shape{1, 1, {}, {}};
  const size_t dims = output.size();
  for (size_t d = 0; d < dims; ++d) {
    PoolAxis& axis = d + 1 == dims ? shape.w : shape.h;
    axis.input = input.sym_size(input.dim() - dims + d).guard_int(__FILE__, __LINE__);
    axis.output = output[d];
    axis.kernel = kernel.empty() ? 0 : kernel[d];
  }
  return {y, at::empty_symint(y.sym_sizes(), y.options().dtype(offset_dtype(shape)),
                              format_of(is_channels_last(input)))};
}

Tensor max_pool_indices_meta(const Tensor& offsets, c10::SymIntArrayRef, IntArrayRef, IntArrayRef,
                             IntArrayRef, IntArrayRef, IntArrayRef, bool channels_last) {
  return at::empty_symint(offsets.sym_sizes(), offsets.options().dtype(at::kLong),
                          format_of(channels_last));
}

Tensor max_pool_backward_meta(const Tensor& grad_output, const Tensor&,
                              c10::SymIntArrayRef input_size, IntArrayRef, IntArrayRef, IntArrayRef,
                              IntArrayRef, IntArrayRef, bool channels_last) {
  return at::empty_symint(input_size, grad_output.options(), format_of(channels_last));
}

Tensor avg_pool_meta(const Tensor& input, IntArrayRef kernel, IntArrayRef stride,
                     IntArrayRef padding, IntArrayRef dilation, IntArrayRef output, bool, int64_t) {
  return max_pool_meta(input, kernel, stride, padding, dilation, output);
}

Tensor avg_pool_backward_meta(const Tensor& grad_output, c10::SymIntArrayRef input_size,
                              IntArrayRef, IntArrayRef, IntArrayRef, IntArrayRef, IntArrayRef, bool,
                              int64_t, bool channels_last) {
  return at::empty_symint(input_size, grad_output.options(), format_of(channels_last));
}

void implement(torch::Library& library) {
  library.impl("max_pool", max_pool_kernel);
  library.impl("max_pool_forward", max_pool_forward_kernel);
  library.impl("max_pool_indices", max_pool_indices_kernel);
  library.impl("max_pool_backward", max_pool_backward_kernel);
  library.impl("avg_pool", avg_pool_kernel);
  library.impl("avg_pool_backward", avg_pool_backward_kernel);
}

TORCH_LIBRARY_FRAGMENT(fastdl, library) {
  // kernel, stride, padding, dilation and output sizes, one or two each; adaptive windows have only
  // the last. Offsets are those of the maxima in their windows: pool.h.
  const auto define = [&](const std::string& before, const std::string& after) {
    const std::string windows =
        "int[] kernel, int[] stride, int[] padding, int[] dilation, int[] output";
    library.def((before + windows + after).c_str());
  };
  define("max_pool(Tensor input, ", ") -> Tensor");
  define("max_pool_with_indices(Tensor input, ", ") -> (Tensor, Tensor)");
  define("max_pool_forward(Tensor input, ", ") -> (Tensor, Tensor)");
  define("max_pool_indices(Tensor offsets, SymInt[] input_size, ",
         ", bool channels_last) -> Tensor");
  define("max_pool_backward(Tensor grad_output, Tensor offsets, SymInt[] input_size, ",
         ", bool channels_last) -> Tensor");
  define("avg_pool(Tensor input, ", ", bool count_include_pad, int divisor) -> Tensor");
  define("avg_pool_backward(Tensor grad_output, SymInt[] input_size, ",
         ", bool count_include_pad, int divisor, bool channels_last) -> Tensor");
}
TORCH_LIBRARY_IMPL(fastdl, CPU, library) { implement(library); }
TORCH_LIBRARY_IMPL(fastdl, CUDA, library) { implement(library); }
TORCH_LIBRARY_IMPL(fastdl, Meta, library) {
  library.impl("max_pool", max_pool_meta);
  library.impl("max_pool_forward", max_pool_forward_meta);
  library.impl("max_pool_indices", max_pool_indices_meta);
  library.impl("max_pool_backward", max_pool_backward_meta);
  library.impl("avg_pool", avg_pool_meta);
  library.impl("avg_pool_backward", avg_pool_backward_meta);
}

}  // namespace

PoolShape pool_shape(IntArrayRef input, const PoolWindows& windows, bool channels_last) {
  const size_t dims = windows.output.size();
  TORCH_CHECK(
      input.size() > dims && input.size() <= dims + 2 && (!channels_last || input.size() == 4),
      "fastdl: pooling over ", dims, " dimensions of an input of size ", input);
  const int64_t channels = input[input.size() - dims - 1];
  const int64_t batch = input.size() == dims + 2 ? input[0] : 1;
  PoolShape shape{channels_last ? batch : batch * channels, channels_last ? channels : 1, {}, {}};
  if (dims == 2) shape.h = axis_of(input[input.size() - 2], windows, 0);
  shape.w = axis_of(input.back(), windows, dims - 1);
  TORCH_CHECK(window_taps(shape) <= kMostTaps, "fastdl: windows of pooling are too large");
  return shape;
}

}  // namespace fastdl
