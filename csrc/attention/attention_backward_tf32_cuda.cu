// Gradients of attention of float32, on tensor cores (tf32).
#include "attention/attention_grad_bias_cuda.cuh"
#include "attention/attention_grad_key_value_cuda.cuh"
#include "attention/attention_grad_query_cuda.cuh"

namespace fastdl {

using Math = AttentionMath<float, true>;
template Status attention_grad_key_value_blocks<Math>(const AttentionBackward&, int,
                                                      const CudaTarget&);
template Status attention_grad_query_blocks<Math>(const AttentionBackward&, int, const CudaTarget&);
template Status attention_grad_bias_blocks<Math>(const AttentionBackward&, int, const CudaTarget&);

}  // namespace fastdl
