// SPDX-License-Identifier: Apache-2.0
// evergemm_c_api_v1 over the table of operators: validation for the fakes, explain and doctor without a call of torch.
// No exception leaves it. Must not go here: rules and wording (src/plan has them).
#include "evergemm/c_api.h"

#include <cstring>
#include <new>
#include <string>
#include <type_traits>
#include <variant>
#include <vector>

#include "compat.h"
#include "evergemm/plan.h"
#include "plan/operators.h"
#include "register.h"
#include "schema.h"
#if defined(EVERGEMM_WITH_CUDA)
#include "cuda/registry.h"
#endif

#ifndef EVERGEMM_VERSION
#error "the build defines EVERGEMM_VERSION"
#endif

namespace evergemm::bindings {

namespace {

static_assert(EVERGEMM_MAX_RANK == kMaxRank && EVERGEMM_MAX_OUTPUTS == kMaxResults);

void give(evergemm_text_v1* text, const std::string& value) {
  if (text == nullptr) return;
  text->length = static_cast<std::int64_t>(value.size());
  if (text->data == nullptr || text->capacity <= 0) return;
  const std::size_t room = static_cast<std::size_t>(text->capacity) - 1;
  const std::size_t copied = value.size() < room ? value.size() : room;
  std::memcpy(text->data, value.data(), copied);
  text->data[copied] = '\0';
}

std::int32_t answer(evergemm_text_v1* text, const Status& status) {
  give(text, status.text());
  return status.ok() ? 0 : 1;
}

Argument argument_of(const evergemm_argument_v1& given) {
  Argument argument;
  argument.kind = static_cast<Argument::Kind>(given.kind);
  argument.integer = given.integer;
  argument.real = given.real;
  if (argument.kind != Argument::Kind::tensor) return argument;
  TensorView& view = argument.tensor;
  view.data = given.tensor.data;
  view.dtype = static_cast<DType>(given.tensor.dtype);
  view.device = device_of(given.tensor.device_type, given.tensor.device_index);
  view.rank = given.tensor.rank;
  view.sizes = given.tensor.sizes;
  view.strides = given.tensor.strides;
  view.storage_bytes = given.tensor.storage_bytes;
  view.requires_grad = given.tensor.requires_grad != 0;
  return argument;
}

Status prepare(const char* operator_name, const evergemm_argument_v1* arguments, std::int32_t count,
               Prepared& prepared) {
  const Operator* self = find_operator(operator_name);
  if (self == nullptr)
    return Status(std::string("evergemm: expected the name of an operator; got ") + operator_name +
                  "; fix: take one of the names in evergemm.ops.");
  std::vector<Argument> values;
  for (std::int32_t i = 0; i < count; ++i) {
    if (arguments[i].kind < 0 || arguments[i].kind > 4 || arguments[i].tensor.rank > kMaxRank)
      return Status(std::string(operator_name) +
                    ": expected arguments of kinds 0 to 4 and ranks up to 64; got another in " + "place " +
                    std::to_string(i) + "; fix: fill evergemm_argument_v1 as its header says.");
    values.push_back(argument_of(arguments[i]));
  }
  return self->prepare(*self, values, prepared);
}

// ---- JSON --------------------------------------------------------------------------------------------------------

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (static_cast<unsigned char>(c) < 0x20) {
      out += ' ';
    } else {
      out += c;
    }
  }
  return out + "\"";
}

std::string cpu_features() {
  std::string list;
#if defined(__x86_64__)
  const auto add = [&list](const char* name, bool has) {
    if (has) list += (list.empty() ? "" : ", ") + quoted(name);
  };
  __builtin_cpu_init();
  add("avx2", __builtin_cpu_supports("avx2"));
  add("fma", __builtin_cpu_supports("fma"));
  add("avx512f", __builtin_cpu_supports("avx512f"));
  add("avx512bw", __builtin_cpu_supports("avx512bw"));
  add("avx512dq", __builtin_cpu_supports("avx512dq"));
  add("avx512vl", __builtin_cpu_supports("avx512vl"));
  add("avx512vnni", __builtin_cpu_supports("avx512vnni"));
  add("avx512vbmi", __builtin_cpu_supports("avx512vbmi"));
#endif
  return "[" + list + "]";
}

std::string architectures() {
  std::string json;
  for (const Architecture architecture :
       {Architecture::cpu, Architecture::sm75, Architecture::sm80, Architecture::sm86, Architecture::sm89,
        Architecture::sm90a, Architecture::sm100, Architecture::sm103, Architecture::sm110, Architecture::sm120,
        Architecture::sm121}) {
    std::string rows;
    for (std::int32_t row = 0; row < row_count(architecture); ++row)
      rows += (row > 0 ? ", " : "") + quoted(row_name(architecture, row));
    json += (json.empty() ? "" : ", ") + quoted(name(architecture)) +
            ": {\"built\": " + (is_built(architecture) ? "true" : "false") + ", \"rows\": [" + rows + "]}";
  }
  return "{" + json + "}";
}

// The GPUs that CUDA's runtime answers for; asking creates no context. None without a driver, or in a build for the CPU.
std::string gpus() {
  std::string list;
#if defined(EVERGEMM_WITH_CUDA)
  DeviceFacts facts;
  for (std::int32_t device = 0; cuda_facts(device, facts).ok(); ++device)
    list += (device > 0 ? ", " : "") + ("{\"index\": " + std::to_string(device)) +
            ", \"architecture\": " + quoted(name(facts.architecture)) +
            ", \"built\": " + (is_built(facts.architecture) ? "true" : "false") +
            ", \"multiprocessors\": " + std::to_string(facts.cores) +
            ", \"shared_memory_bytes\": " + std::to_string(facts.shared_memory_bytes) + "}";
#endif
  return "[" + list + "]";
}

std::string facts_json() {
  const DeviceFacts processor = cpu_facts();
  return "{\"version\": " + quoted(EVERGEMM_VERSION) + ", \"status\": " + quoted(registration_status()) +
         ", \"cpu\": {\"instruction_set\": " + quoted(name(processor.instruction_set)) +
         ", \"cores\": " + std::to_string(processor.cores) + ", \"features\": " + cpu_features() +
         "}, \"gpus\": " + gpus() + ", \"architectures\": " + architectures() + "}";
}

template <class Problem>
std::string explain_other(const char* operator_name, const Problem& problem, const DeviceFacts& facts, Status& status) {
  Plan chosen;
  status = plan(problem, facts, chosen);
  return "{\"operator\": " + quoted(operator_name) + ", \"architecture\": " + quoted(name(facts.architecture)) +
         ", \"built\": " + (is_built(facts.architecture) ? "true" : "false") + ", \"row\": " + quoted(chosen.name) +
         ", \"why\": " + quoted(chosen.why) + "}";
}

// ---- the functions -----------------------------------------------------------------------------------------------

// Everything below may run out of memory and nothing else; the caller is told so.
template <class Function>
std::int32_t guarded(evergemm_text_v1* text, Function function) noexcept {
  try {
    return function();
  } catch (...) {
    if (text != nullptr) text->length = 0;
    if (text != nullptr && text->data != nullptr && text->capacity > 0) text->data[0] = '\0';
    return 1;
  }
}

const char* version() { return EVERGEMM_VERSION; }
const char* status() { return registration_status(); }
std::int32_t operator_count() { return static_cast<std::int32_t>(registered_operators().size()); }
bool in_table(std::int32_t index) { return index >= 0 && index < operator_count(); }
const char* operator_schema(std::int32_t index) {
  return in_table(index) ? registered_operators()[static_cast<std::size_t>(index)].schema->text : nullptr;
}
std::int32_t operator_takes_tensors(std::int32_t index) {
  return in_table(index) && registered_operators()[static_cast<std::size_t>(index)].takes_tensors ? 1 : 0;
}

std::int32_t validate_call(const char* operator_name, const evergemm_argument_v1* arguments, std::int32_t count,
                           evergemm_output_v1* outputs, std::int32_t* output_count, evergemm_text_v1* text) {
  return guarded(text, [&] {
    Prepared prepared;
    const Status status = prepare(operator_name, arguments, count, prepared);
    *output_count = status.ok() ? prepared.output_count : 0;
    for (std::int32_t i = 0; i < *output_count; ++i) {
      const OutputSpec& spec = prepared.outputs[i];
      outputs[i].dtype = static_cast<std::int32_t>(spec.dtype);
      outputs[i].device_type = static_cast<std::int32_t>(spec.device.type);
      outputs[i].device_index = spec.device.index;
      outputs[i].rank = spec.rank;
      for (std::int32_t d = 0; d < spec.rank; ++d) {
        outputs[i].sizes[d] = spec.sizes[d];
        outputs[i].strides[d] = spec.strides[d];
      }
    }
    return answer(text, status);
  });
}

std::int32_t explain_call(const char* operator_name, const evergemm_argument_v1* arguments, std::int32_t count,
                          const char* architecture, evergemm_text_v1* text) {
  return guarded(text, [&] {
    Prepared prepared;
    Status status = prepare(operator_name, arguments, count, prepared);
    if (!status.ok()) return answer(text, status);
    DeviceFacts facts = cpu_facts();
    if (architecture != nullptr && !facts_named(architecture, facts))
      return answer(text, Status(std::string("explain: expected an architecture such as cpu, cpu-avx2 or sm90a; got ") +
                                 architecture + "; fix: name one that evergemm doctor lists."));
    const std::string json = std::visit(
        [&](const auto& problem) {
          if constexpr (std::is_same_v<decltype(problem), const GemmProblem&>)
            return explain(problem, facts);
          else
            return explain_other(operator_name, problem, facts, status);
        },
        prepared.problem);
    if (!status.ok()) return answer(text, status);
    give(text, json);
    return 0;
  });
}

std::int32_t facts_call(evergemm_text_v1* text) {
  return guarded(text, [&] {
    give(text, facts_json());
    return 0;
  });
}

std::int32_t supports_fp8(std::int64_t capability) { return dropin_supports_fp8(capability) ? 1 : 0; }
std::int32_t supports_block_fp8(std::int64_t capability) { return dropin_supports_block_fp8(capability) ? 1 : 0; }
std::int32_t supports_grouped(std::int64_t capability) { return dropin_supports_grouped(capability) ? 1 : 0; }

std::int32_t register_dropins_call(const char* const* names, std::int32_t count, evergemm_text_v1* text) {
  return guarded(text, [&] { return answer(text, register_dropins(names, count)); });
}

}  // namespace

}  // namespace evergemm::bindings

using namespace evergemm::bindings;

extern "C" const evergemm_c_api evergemm_c_api_v1 = {
    sizeof(evergemm_c_api), version,      status,     operator_count, operator_schema,    operator_takes_tensors,
    validate_call,          explain_call, facts_call, supports_fp8,   supports_block_fp8, supports_grouped,
    register_dropins_call,
};
