// torch ops of the optimizers' steps, and their eager entries.
#include "optimizer/optimizer_ops_torch.h"

#include <ATen/ATen.h>
#include <torch/library.h>

namespace fastdl {
namespace {

using at::TensorList;

void adam_kernel(TensorList params, TensorList grads, TensorList exp_avgs, TensorList exp_avg_sqs,
                 TensorList max_exp_avg_sqs, TensorList steps, double lr, double beta1,
                 double beta2, double weight_decay, double eps, bool maximize, bool decoupled,
                 const OptionalTensor& lr_tensor, const OptionalTensor& grad_scale,
                 const OptionalTensor& found_inf, const OptionalTensor& clip) {
  run_step("fastdl::adam_", {params, grads, {exp_avgs, exp_avg_sqs, max_exp_avg_sqs}, steps},
           {lr, decoupled ? 0 : weight_decay, maximize, lr_tensor, grad_scale, found_inf, clip},
           Adam{beta1, beta2, eps, decoupled ? weight_decay : 0});
}

void sgd_kernel(TensorList params, TensorList grads, TensorList momentum_buffers, double lr,
                double momentum, double dampening, double weight_decay, bool nesterov,
                bool maximize, bool first, const OptionalTensor& lr_tensor,
                const OptionalTensor& grad_scale, const OptionalTensor& found_inf,
                const OptionalTensor& clip) {
  run_step("fastdl::sgd_", {params, grads, {momentum_buffers}, {}},
           {lr, weight_decay, maximize, lr_tensor, grad_scale, found_inf, clip},
           Sgd{momentum, dampening, nesterov, first});
}

void adagrad_kernel(TensorList params, TensorList grads, TensorList sums, TensorList steps,
                    double lr, double lr_decay, double weight_decay, double eps, bool maximize,
                    const OptionalTensor& lr_tensor, const OptionalTensor& grad_scale,
                    const OptionalTensor& found_inf, const OptionalTensor& clip) {
  run_step("fastdl::adagrad_", {params, grads, {sums}, steps},
           {lr, weight_decay, maximize, lr_tensor, grad_scale, found_inf, clip},
           Adagrad{lr_decay, eps});
}

void rmsprop_kernel(TensorList params, TensorList grads, TensorList square_avgs,
                    TensorList grad_avgs, TensorList momentum_buffers, TensorList steps, double lr,
                    double alpha, double weight_decay, double eps, double momentum, bool maximize,
                    const OptionalTensor& lr_tensor, const OptionalTensor& grad_scale,
                    const OptionalTensor& found_inf, const OptionalTensor& clip) {
  run_step("fastdl::rmsprop_", {params, grads, {square_avgs, grad_avgs, momentum_buffers}, steps},
           {lr, weight_decay, maximize, lr_tensor, grad_scale, found_inf, clip},
           RmsProp{alpha, eps, momentum});
}

// On meta tensors there is nothing to do.
void do_nothing(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  torch::jit::drop(*stack, op.schema().arguments().size());
}

constexpr const char* kNames[] = {"adam_", "sgd_", "adagrad_", "rmsprop_"};

// grads are written only with a grad_scale. Empty are max_exp_avg_sqs without amsgrad, grad_avgs
// unless centered, momentum_buffers without momentum.
TORCH_LIBRARY_FRAGMENT(fastdl, library) {
  library.def(
      "adam_(Tensor(a!)[] params, Tensor(b!)[] grads, Tensor(c!)[] exp_avgs, "
      "Tensor(d!)[] exp_avg_sqs, Tensor(e!)[] max_exp_avg_sqs, Tensor(f!)[] steps, float lr, "
      "float beta1, float beta2, float weight_decay, float eps, bool maximize, bool decoupled, "
      "Tensor? lr_tensor, Tensor? grad_scale, Tensor? found_inf, Tensor? clip=None) -> ()");
  library.def(
      "sgd_(Tensor(a!)[] params, Tensor(b!)[] grads, Tensor(c!)[] momentum_buffers, float lr, "
      "float momentum, float dampening, float weight_decay, bool nesterov, bool maximize, "
      "bool first, Tensor? lr_tensor, Tensor? grad_scale, Tensor? found_inf, Tensor? clip=None) "
      "-> ()");
  library.def(
      "adagrad_(Tensor(a!)[] params, Tensor(b!)[] grads, Tensor(c!)[] sums, Tensor(d!)[] steps, "
      "float lr, float lr_decay, float weight_decay, float eps, bool maximize, Tensor? lr_tensor, "
      "Tensor? grad_scale, Tensor? found_inf, Tensor? clip=None) -> ()");
  library.def(
      "rmsprop_(Tensor(a!)[] params, Tensor(b!)[] grads, Tensor(c!)[] square_avgs, "
      "Tensor(d!)[] grad_avgs, Tensor(e!)[] momentum_buffers, Tensor(f!)[] steps, float lr, "
      "float alpha, float weight_decay, float eps, float momentum, bool maximize, "
      "Tensor? lr_tensor, Tensor? grad_scale, Tensor? found_inf, Tensor? clip=None) -> ()");
}

void implement(torch::Library& library) {
  library.impl("adam_", adam_kernel);
  library.impl("sgd_", sgd_kernel);
  library.impl("adagrad_", adagrad_kernel);
  library.impl("rmsprop_", rmsprop_kernel);
}
TORCH_LIBRARY_IMPL(fastdl, CPU, library) { implement(library); }
TORCH_LIBRARY_IMPL(fastdl, CUDA, library) { implement(library); }
TORCH_LIBRARY_IMPL(fastdl, Meta, library) {
  for (const char* name : kNames) {
    library.impl(name, torch::CppFunction::makeFromBoxedFunction<&do_nothing>());
  }
}
// A step has no gradient of its own: without this torch would box and scan all lists on every call.
TORCH_LIBRARY_IMPL(fastdl, Autograd, library) {
  for (const char* name : kNames) library.impl(name, torch::CppFunction::makeFallthrough());
}

}  // namespace

std::vector<int64_t> adam_step_all(
    const PlainTensors& params, const PlainTensors& grads, const PlainTensors& exp_avgs,
    const PlainTensors& exp_avg_sqs, const PlainTensors& max_exp_avg_sqs, const PlainTensors& steps,
    Number lr, Number beta1, Number beta2, Number weight_decay, Number eps, bool maximize,
    bool decoupled, const OptionalPlainTensor& lr_tensor, const OptionalPlainTensor& grad_scale,
    const OptionalPlainTensor& found_inf, const OptionalPlainTensor& clip) {
  static const auto op = find_op<decltype(adam_kernel)>("fastdl::adam_");
  auto [parts, left] =
      sort_tensors(decoupled ? "AdamW" : "Adam",
                   {&params, &grads, {&exp_avgs, &exp_avg_sqs, &max_exp_avg_sqs}, &steps});
  for (const auto& [device, lists] : parts) {
    op.call(lists.params, lists.grads, lists.states[0], lists.states[1], lists.states[2],
            lists.steps, lr, beta1, beta2, weight_decay, eps, maximize, decoupled, plain(lr_tensor),
            plain(grad_scale), plain(found_inf), plain(clip));
  }
  return std::move(left);
}

std::vector<int64_t> sgd_step_all(const PlainTensors& params, const PlainTensors& grads,
                                  const PlainTensors& momentum_buffers, Number lr, Number momentum,
                                  Number dampening, Number weight_decay, bool nesterov,
                                  bool maximize, bool first, const OptionalPlainTensor& lr_tensor,
                                  const OptionalPlainTensor& grad_scale,
                                  const OptionalPlainTensor& found_inf,
                                  const OptionalPlainTensor& clip) {
  static const auto op = find_op<decltype(sgd_kernel)>("fastdl::sgd_");
  const PlainTensors none;
  auto [parts, left] =
      sort_tensors("SGD", {&params, &grads, {&momentum_buffers, &none, &none}, &none});
  for (const auto& [device, lists] : parts) {
    op.call(lists.params, lists.grads, lists.states[0], lr, momentum, dampening, weight_decay,
            nesterov, maximize, first, plain(lr_tensor), plain(grad_scale), plain(found_inf),
            plain(clip));
  }
  return std::move(left);
}

std::vector<int64_t> adagrad_step_all(const PlainTensors& params, const PlainTensors& grads,
                                      const PlainTensors& sums, const PlainTensors& steps,
                                      Number lr, Number lr_decay, Number weight_decay, Number eps,
                                      bool maximize, const OptionalPlainTensor& lr_tensor,
                                      const OptionalPlainTensor& grad_scale,
                                      const OptionalPlainTensor& found_inf,
                                      const OptionalPlainTensor& clip) {
  static const auto op = find_op<decltype(adagrad_kernel)>("fastdl::adagrad_");
  const PlainTensors none;
  auto [parts, left] = sort_tensors("Adagrad", {&params, &grads, {&sums, &none, &none}, &steps});
  for (const auto& [device, lists] : parts) {
    op.call(lists.params, lists.grads, lists.states[0], lists.steps, lr, lr_decay, weight_decay,
            eps, maximize, plain(lr_tensor), plain(grad_scale), plain(found_inf), plain(clip));
  }
  return std::move(left);
}

std::vector<int64_t> rmsprop_step_all(
    const PlainTensors& params, const PlainTensors& grads, const PlainTensors& square_avgs,
    const PlainTensors& grad_avgs, const PlainTensors& momentum_buffers, const PlainTensors& steps,
    Number lr, Number alpha, Number weight_decay, Number eps, Number momentum, bool maximize,
    const OptionalPlainTensor& lr_tensor, const OptionalPlainTensor& grad_scale,
    const OptionalPlainTensor& found_inf, const OptionalPlainTensor& clip) {
  static const auto op = find_op<decltype(rmsprop_kernel)>("fastdl::rmsprop_");
  auto [parts, left] = sort_tensors(
      "RMSprop", {&params, &grads, {&square_avgs, &grad_avgs, &momentum_buffers}, &steps});
  for (const auto& [device, lists] : parts) {
    op.call(lists.params, lists.grads, lists.states[0], lists.states[1], lists.states[2],
            lists.steps, lr, alpha, weight_decay, eps, momentum, maximize, plain(lr_tensor),
            plain(grad_scale), plain(found_inf), plain(clip));
  }
  return std::move(left);
}

}  // namespace fastdl
