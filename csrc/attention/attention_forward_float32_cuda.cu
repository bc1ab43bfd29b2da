// Forward attention of float32, on tensor cores (tf32) and in float32.
#include "attention/attention_forward_cuda.cuh"

namespace fastdl {

template Status attention_forward_blocks<AttentionMath<float, true>>(const AttentionForward&, int,
                                                                     const CudaTarget&);
template Status attention_forward_blocks<AttentionMath<float, false>>(const AttentionForward&, int,
                                                                      const CudaTarget&);

}  // namespace fastdl
