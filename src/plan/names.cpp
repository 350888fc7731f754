// SPDX-License-Identifier: Apache-2.0
// The printed names of the enumerations in types.h and plan.h.
#include <array>
#include <cstring>

#include "evergemm/plan.h"
#include "evergemm/types.h"

namespace evergemm {

const char* name(DType type) {
  switch (type) {
    case DType::uint8:
      return "uint8";
    case DType::int8:
      return "int8";
    case DType::int16:
      return "int16";
    case DType::int32:
      return "int32";
    case DType::int64:
      return "int64";
    case DType::float16:
      return "float16";
    case DType::float32:
      return "float32";
    case DType::float64:
      return "float64";
    case DType::boolean:
      return "bool";
    case DType::bfloat16:
      return "bfloat16";
    case DType::float8_e5m2:
      return "float8_e5m2";
    case DType::float8_e4m3fn:
      return "float8_e4m3fn";
    case DType::float8_e8m0fnu:
      return "float8_e8m0fnu";
    case DType::float4_e2m1fn_x2:
      return "float4_e2m1fn_x2";
  }
  return "unknown";
}

const char* name(ScaleMode mode) {
  switch (mode) {
    case ScaleMode::TensorWise:
      return "TensorWise";
    case ScaleMode::RowWise:
      return "RowWise";
    case ScaleMode::BlockWise1x128:
      return "BlockWise1x128";
    case ScaleMode::BlockWise128x128:
      return "BlockWise128x128";
  }
  return "unknown";
}

namespace {
struct NamedArchitecture {
  Architecture architecture;
  const char* name;
};
constexpr std::array kArchitectures = {
    NamedArchitecture{Architecture::cpu, "cpu"},     NamedArchitecture{Architecture::sm75, "sm75"},
    NamedArchitecture{Architecture::sm80, "sm80"},   NamedArchitecture{Architecture::sm86, "sm86"},
    NamedArchitecture{Architecture::sm89, "sm89"},   NamedArchitecture{Architecture::sm90a, "sm90a"},
    NamedArchitecture{Architecture::sm100, "sm100"}, NamedArchitecture{Architecture::sm103, "sm103"},
    NamedArchitecture{Architecture::sm110, "sm110"}, NamedArchitecture{Architecture::sm120, "sm120"},
    NamedArchitecture{Architecture::sm121, "sm121"},
};
}  // namespace

const char* name(Architecture architecture) {
  for (const NamedArchitecture& entry : kArchitectures)
    if (entry.architecture == architecture) return entry.name;
  return "unknown";
}

bool parse(const char* text, Architecture& architecture) {
  for (const NamedArchitecture& entry : kArchitectures) {
    if (std::strcmp(entry.name, text) == 0) {
      architecture = entry.architecture;
      return true;
    }
  }
  return false;
}

const char* name(InstructionSet set) {
  switch (set) {
    case InstructionSet::portable:
      return "portable";
    case InstructionSet::avx2:
      return "avx2";
    case InstructionSet::avx512:
      return "avx512";
    case InstructionSet::avx512_vnni:
      return "avx512_vnni";
  }
  return "unknown";
}

const char* name(Accumulation accumulation) {
  switch (accumulation) {
    case Accumulation::exact_int32:
      return "exact_int32";
    case Accumulation::fast:
      return "fast";
    case Accumulation::promoted:
      return "promoted";
  }
  return "unknown";
}

}  // namespace evergemm
