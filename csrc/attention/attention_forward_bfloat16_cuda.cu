// Forward attention of bfloat16, on tensor cores.
#include "attention/attention_forward_cuda.cuh"

namespace fastdl {

template Status attention_forward_blocks<AttentionMath<__nv_bfloat16, true>>(
    const AttentionForward&, int, const CudaTarget&);

}  // namespace fastdl
