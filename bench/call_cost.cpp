// SPDX-License-Identifier: Apache-2.0
// quantize_static.out once more, registered the classic way: C++ types, unstable interface, one torch release. It does the
// same work over the same layers, so that call_cost.py sees what the boxed stable call costs. Never shipped.
#include <ATen/Parallel.h>
#include <torch/library.h>

#include <stdexcept>

#include "evergemm/run.h"
#include "plan/operators.h"

namespace {

evergemm::TensorView view_of(const at::Tensor& tensor, bool written) {
  evergemm::TensorView view;
  view.data = written ? tensor.mutable_data_ptr() : tensor.const_data_ptr();
  view.dtype = static_cast<evergemm::DType>(tensor.scalar_type());
  view.rank = static_cast<std::int32_t>(tensor.dim());
  view.sizes = tensor.sizes().data();
  view.strides = tensor.strides().data();
  view.storage_bytes =
      static_cast<std::int64_t>(tensor.storage().nbytes()) - tensor.storage_offset() * tensor.itemsize();
  view.requires_grad = tensor.requires_grad() && at::GradMode::is_enabled();
  return view;
}

void quantize_static_out(const at::Tensor& x, const at::Tensor& scale, at::Tensor& out_q) {
  static const evergemm::Operator* const self = evergemm::find_operator("quantize_static.out");
  static const evergemm::DeviceFacts facts = evergemm::cpu_facts();
  evergemm::Argument values[3];
  for (evergemm::Argument& value : values) value.kind = evergemm::Argument::Kind::tensor;
  values[0].tensor = view_of(x, false);
  values[1].tensor = view_of(scale, false);
  values[2].tensor = view_of(out_q, true);
  evergemm::Prepared prepared;
  evergemm::Status status = self->prepare(*self, {values, 3}, prepared);
  if (!status.ok()) throw std::runtime_error(status.text());
  const auto& problem = std::get<evergemm::QuantizeProblem>(prepared.problem);
  evergemm::DeviceFacts here = facts;
  here.cores = at::get_num_threads();
  evergemm::Plan chosen;
  status = evergemm::plan(problem, here, chosen);
  if (!status.ok()) throw std::runtime_error(status.text());
  evergemm::RunContext context;
  context.threads = here.cores;
  status = evergemm::run(chosen, problem, context);
  if (!status.ok()) throw std::runtime_error(status.text());
}

}  // namespace

TORCH_LIBRARY(evergemm_classic, library) {
  library.def("quantize_static.out(Tensor x, Tensor scale, *, Tensor(a!) out_q) -> ()");
}
TORCH_LIBRARY_IMPL(evergemm_classic, CPU, library) {
  library.impl("quantize_static.out", TORCH_FN(quantize_static_out));
}
