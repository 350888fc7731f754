// SPDX-License-Identifier: Apache-2.0
// The one kernel behind every operator: torch's stack -> Argument[] -> prepare -> allocate -> plan -> run -> torch's stack.
// Only std::runtime_error leaves it. Must not go here: arithmetic, launches, anything about a single operator.
#include <dlfcn.h>

#include <cstddef>
#include <cstring>
#include <new>
#include <type_traits>
#include <variant>

#include "compat.h"
#include "convert.h"
#include "device.h"
#include "evergemm/run.h"
#include "schema.h"

namespace evergemm::bindings {

std::string last_torch_error() {
  // A shim of torch 2.13: looked up, not linked, since the oldest torch we run on lacks it.
  using Getter = const char* (*)();
  static const Getter getter =
      reinterpret_cast<Getter>(dlsym(RTLD_DEFAULT, "torch_exception_get_what_without_backtrace"));
  const char* text = getter == nullptr ? nullptr : getter();
  return text == nullptr ? "" : text;
}

namespace {

// Takes every tensor handle on the stack before anything else can fail, and gives them all back when it goes.
class TakenStack {
 public:
  TakenStack(const Schema& schema, const StableIValue* stack) : count_(schema.arguments) {
    for (std::int32_t i = 0; i < count_; ++i) {
      handles_[i] = nullptr;
      if (schema.argument[i].kind != Argument::Kind::tensor) continue;
      if (!schema.argument[i].optional) {
        std::memcpy(&handles_[i], &stack[i], sizeof handles_[i]);
        continue;
      }
      StableIValue* boxed = nullptr;  // null for None; otherwise torch allocated it with new and leaves it to us
      std::memcpy(&boxed, &stack[i], sizeof boxed);
      if (boxed == nullptr) continue;
      std::memcpy(&handles_[i], boxed, sizeof handles_[i]);
      delete boxed;
    }
  }
  TakenStack(const TakenStack&) = delete;
  TakenStack& operator=(const TakenStack&) = delete;
  ~TakenStack() {
    for (std::int32_t i = 0; i < count_; ++i)
      if (handles_[i] != nullptr) aoti_torch_delete_tensor_object(handles_[i]);
  }
  AtenTensorHandle handle(std::int32_t i) const { return handles_[i]; }

 private:
  std::int32_t count_;
  AtenTensorHandle handles_[kMaxArguments];
};

void raise(const Status& status) {
  if (!status.ok()) throw std::runtime_error(status.text());
}

void allocate(const OutputSpec& spec, const char* operator_name, OwnedTensor& tensor) {
  AtenTensorHandle handle = nullptr;
  require(aoti_torch_empty_strided(spec.rank, spec.sizes, spec.strides, static_cast<std::int32_t>(spec.dtype),
                                   device_code(spec.device), spec.device.index, &handle),
          operator_name, "allocating a result");
  tensor.reset(handle);
}

void* address(const OwnedTensor& tensor, const char* operator_name) {
  void* data = nullptr;
  require(torch_get_mutable_data_ptr(tensor.get(), &data), operator_name, "allocating memory");
  return data;
}

Status choose(const Prepared& prepared, const DeviceFacts& facts, Plan& chosen) {
  if (prepared.row >= 0) return plan_row(std::get<GemmProblem>(prepared.problem), facts, prepared.row, chosen);
  return std::visit([&](const auto& problem) { return plan(problem, facts, chosen); }, prepared.problem);
}

}  // namespace

void call_boxed(const Schema& schema, const Operator& self, StableIValue* stack, std::uint64_t arguments,
                std::uint64_t results) {
  // Torch fills the stack by the schema that we gave it, so that the counts are ours.
  (void)arguments;
  (void)results;
  const TakenStack taken(schema, stack);
  const bool grad_mode = aoti_torch_grad_mode_is_enabled();
  // Only as many as there are: a call costs little enough for the others' initialization to show.
  alignas(Argument) std::byte memory[kMaxArguments * sizeof(Argument)];
  static_assert(std::is_trivially_destructible_v<Argument>);
  Argument* const values = reinterpret_cast<Argument*>(memory);
  for (std::int32_t i = 0; i < schema.arguments; ++i) {
    Argument& value = *new (&values[i]) Argument;
    value.kind = schema.argument[i].kind;
    switch (value.kind) {
      case Argument::Kind::tensor:
        if (taken.handle(i) != nullptr)
          value.tensor = view_of(taken.handle(i), schema.argument[i].written, grad_mode, self.name);
        break;
      case Argument::Kind::integer:
        value.integer = static_cast<std::int64_t>(stack[i]);
        break;
      case Argument::Kind::real:
        std::memcpy(&value.real, &stack[i], sizeof value.real);
        break;
      case Argument::Kind::boolean:
        value.integer = static_cast<std::int64_t>(stack[i] & 0xff);
        break;
      case Argument::Kind::dtype:
        value.integer = static_cast<std::int32_t>(stack[i]);
        break;
    }
  }

  Prepared prepared;
  raise(self.prepare(self, {values, static_cast<std::size_t>(schema.arguments)}, prepared));

  const DeviceScope scope(prepared.device(), self.name);  // facts, stream, threads
  OwnedTensor outputs[kMaxResults];
  for (std::int32_t i = 0; i < prepared.output_count; ++i) {
    allocate(prepared.outputs[i], self.name, outputs[i]);
    prepared.bind(i, address(outputs[i], self.name));
  }

  Plan chosen;
  raise(choose(prepared, scope.facts(), chosen));
  if (chosen.row >= 0) {
    RunContext context = scope.context();
    context.overlap = prepared.overlap;
    OwnedTensor workspace;
    if (chosen.workspace_bytes > 0) {
      constexpr std::int64_t alignment = 256;  // run.h's promise; torch's CPU allocator gives 64
      OutputSpec spec;
      spec.dtype = DType::uint8;
      spec.device = prepared.device();
      spec.rank = 1;
      spec.sizes[0] = chosen.workspace_bytes + alignment;
      spec.strides[0] = 1;
      allocate(spec, self.name, workspace);
      const std::uintptr_t begin = reinterpret_cast<std::uintptr_t>(address(workspace, self.name));
      context.workspace = reinterpret_cast<void*>((begin + alignment - 1) / alignment * alignment);
    }
    raise(std::visit([&](const auto& problem) { return run(chosen, problem, context); }, prepared.problem));
    scope.check_threads(self.name);
  }
  for (std::int32_t i = 0; i < schema.results; ++i) {
    AtenTensorHandle handle = outputs[i].release();
    std::memcpy(&stack[i], &handle, sizeof handle);
  }
}

}  // namespace evergemm::bindings
