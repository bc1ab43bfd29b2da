// The pooling kernels of one instruction set, in one file: most of the time to compile goes into
// torch's headers.
#include "pool/pool_average_cpu.h"
#include "pool/pool_max_backward_cpu.h"
#include "pool/pool_max_forward_cpu.h"

namespace fastdl {

template <>
void max_pool_forward<kBuildIsa>(const MaxPoolForwardArgs& args) {
  dispatch_dtype<CpuTypes>(args.dtype, [&]<class T> { pool_detail::max_forward<T>(args); });
}

template <>
void max_pool_backward<kBuildIsa>(const MaxPoolBackwardArgs& args) {
  dispatch_dtype<CpuTypes>(args.dtype, [&]<class T> {
    has_byte_offsets(args.shape) ? pool_detail::max_backward<T, uint8_t>(args)
                                 : pool_detail::max_backward<T, int32_t>(args);
  });
}

template <>
void max_pool_indices<kBuildIsa>(const MaxPoolIndicesArgs& args) {
  has_byte_offsets(args.shape) ? pool_detail::max_indices<uint8_t>(args)
                               : pool_detail::max_indices<int32_t>(args);
}

template <>
void average_pool_forward<kBuildIsa>(const AveragePoolArgs& args) {
  dispatch_dtype<CpuTypes>(args.dtype, [&]<class T> { pool_detail::average_forward<T>(args); });
}

template <>
void average_pool_backward<kBuildIsa>(const AveragePoolArgs& args) {
  dispatch_dtype<CpuTypes>(args.dtype, [&]<class T> { pool_detail::average_backward<T>(args); });
}

}  // namespace fastdl
