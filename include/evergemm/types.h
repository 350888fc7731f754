// SPDX-License-Identifier: Apache-2.0
// The small words every layer shares: data types, devices, scale modes, architectures.
// Stands at the bottom of the flow; includes the C++ standard library only.
#pragma once
#include <cstdint>

namespace evergemm {

// The numbers are those of torch's ScalarType (frozen by its serialized formats), so that a code that this list does
// not name can still be carried and printed.
enum class DType : std::int32_t {
  uint8 = 0,
  int8 = 1,
  int16 = 2,
  int32 = 3,
  int64 = 4,
  float16 = 5,
  float32 = 6,
  float64 = 7,
  boolean = 11,
  bfloat16 = 15,
  float8_e5m2 = 23,
  float8_e4m3fn = 24,
  float8_e8m0fnu = 44,
  float4_e2m1fn_x2 = 45,
};

// Bytes of one element; 0 for a type that no operator here accepts.
constexpr std::int64_t size_in_bytes(DType type) {
  switch (type) {
    case DType::uint8:
    case DType::int8:
    case DType::boolean:
    case DType::float8_e5m2:
    case DType::float8_e4m3fn:
    case DType::float8_e8m0fnu:
    case DType::float4_e2m1fn_x2:
      return 1;
    case DType::int16:
    case DType::float16:
    case DType::bfloat16:
      return 2;
    case DType::int32:
    case DType::float32:
      return 4;
    case DType::int64:
    case DType::float64:
      return 8;
  }
  return 0;
}

// "int8", "float8_e4m3fn", ...: torch's spelling. "unknown" for a code that is not listed.
const char* name(DType type);

enum class DeviceType : std::int32_t { cpu = 0, cuda = 1, other = 2 };

struct Device {
  DeviceType type = DeviceType::cpu;
  std::int32_t index = -1;  // meaningful for cuda only
  friend constexpr bool operator==(const Device& x, const Device& y) {
    return x.type == y.type && (x.type == DeviceType::cpu || x.index == y.index);
  }
};

// Names as in torch.nn.functional.ScalingType. real = scale * quantized.
enum class ScaleMode : std::uint8_t { TensorWise, RowWise, BlockWise1x128, BlockWise128x128 };
const char* name(ScaleMode mode);

// Width and height of a scale block, in elements.
inline constexpr std::int64_t kScaleBlock = 128;

enum class Architecture : std::uint8_t { cpu, sm75, sm80, sm86, sm89, sm90a, sm100, sm103, sm110, sm120, sm121 };
const char* name(Architecture architecture);
// True and the architecture for "cpu", "sm90a", ...; false for a text that names none.
bool parse(const char* text, Architecture& architecture);

enum class Activation : std::uint8_t { silu = 0, gelu = 1, relu_squared = 2 };

}  // namespace evergemm
