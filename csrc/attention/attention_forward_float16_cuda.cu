// Forward attention of float16, on tensor cores.
#include "attention/attention_forward_cuda.cuh"

namespace fastdl {

template Status attention_forward_blocks<AttentionMath<__half, true>>(const AttentionForward&, int,
                                                                      const CudaTarget&);

}  // namespace fastdl
