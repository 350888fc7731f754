// SPDX-License-Identifier: Apache-2.0
// What the programs for mixture of experts share: memory that lies on the host and on the device, integers that no caller
// should send, routings, a run through planner and backend. Must not go here: what an operator should compute.
#pragma once
#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "cuda/registry.h"
#include "evergemm/moe.h"
#include "evergemm/numerics.h"
#include "evergemm/plan.h"
#include "harness.h"

namespace evergemm::gpu_test {

// The same bytes on host and device: 0xFF on both until filled, with red zones around the device's.
class Mirror {
 public:
  explicit Mirror(std::int64_t bytes, std::int64_t shift = 0)
      : host_(static_cast<std::size_t>(bytes), 0xFF), device_(bytes, shift) {}
  template <class T = unsigned char>
  T* host() {
    return reinterpret_cast<T*>(host_.data());
  }
  template <class T = unsigned char>
  T* device() {
    return reinterpret_cast<T*>(device_.data());
  }
  std::int64_t bytes() const { return device_.bytes(); }
  void upload() { device_.fill(host_.data(), bytes()); }
  void poison() {
    std::fill(host_.begin(), host_.end(), static_cast<unsigned char>(0xFF));
    device_.poison();
  }
  bool zones_whole() {
    bool zones = false;
    device_.read(zones);
    return zones;
  }
  // "" where the device holds the host's bytes and the red zones are whole.
  std::string difference(const char* what) {
    bool zones = false;
    const std::vector<unsigned char> got = device_.read(zones);
    if (!zones) return std::string(what) + ": a red zone was written";
    for (std::size_t i = 0; i < got.size(); ++i)
      if (got[i] != host_[i])
        return std::string(what) + ": byte " + std::to_string(i) + " of " + std::to_string(got.size()) + " is " +
               std::to_string(got[i]) + ", expected " + std::to_string(host_[i]);
    return "";
  }

 private:
  std::vector<unsigned char> host_;
  DeviceBuffer device_;
};

inline const DeviceFacts& device_facts() {
  static const DeviceFacts facts = [] {
    DeviceFacts read;
    const Status status = cuda_facts(0, read);
    if (!status.ok()) {
      std::fprintf(stderr, "%s\n", status.text().c_str());
      std::exit(2);
    }
    return read;
  }();
  return facts;
}

// Plans for device 0, gives a workspace with red zones, runs. "" or what is wrong.
template <class Problem>
std::string run_on_device(const Problem& problem) {
  Plan chosen;
  Status status = plan(problem, device_facts(), chosen);
  if (!status.ok()) return status.text();
  if (chosen.row < 0) return "";
  DeviceBuffer workspace(chosen.workspace_bytes);
  RunContext context;
  context.workspace = workspace.data();
  status = run_cuda(chosen, problem, context);
  if (!status.ok()) return status.text();
  require(cudaDeviceSynchronize(), chosen.name);
  bool zones = true;
  if (chosen.workspace_bytes > 0) workspace.read(zones);
  return zones ? "" : "a red zone of the workspace was written";
}

enum class Routing : std::uint8_t { uniform, one_hot, all_empty, trailing_empty, duplicates, hostile };
inline constexpr Routing kRoutings[] = {Routing::uniform,        Routing::one_hot,    Routing::all_empty,
                                        Routing::trailing_empty, Routing::duplicates, Routing::hostile};

// An integer that no caller should send, or should.
inline std::int64_t hostile(Random& random, std::int64_t limit, bool wide) {
  using Int = std::numeric_limits<std::int32_t>;
  using Long = std::numeric_limits<std::int64_t>;
  const std::int64_t all[] = {
      0, -1, limit, limit + 1, Int::min(), Int::max(), 0, random.below(limit + 1), Long::min(), Long::max()};
  const std::int64_t which = random.below(wide ? 10 : 8);
  return which == 6 ? static_cast<std::int32_t>(random.next()) : all[which];
}

inline std::int64_t choose_expert(Random& random, Routing routing, std::int64_t experts, std::int64_t choice,
                                  bool wide) {
  switch (routing) {
    case Routing::uniform:
      return random.below(experts);
    case Routing::one_hot:
      return choice == 0 ? experts / 2 : random.below(experts);
    case Routing::all_empty:
      return -1;
    case Routing::trailing_empty:
      return random.below(experts / 2 + 1);
    case Routing::duplicates:
      return choice / 2 % experts;
    case Routing::hostile:
      return random.below(2) == 0 ? random.below(experts) : hostile(random, experts, wide);
  }
  return 0;
}

inline void store_index(void* data, bool wide, std::int64_t at, std::int64_t value) {
  if (wide)
    static_cast<std::int64_t*>(data)[at] = value;
  else
    static_cast<std::int32_t*>(data)[at] = static_cast<std::int32_t>(value);
}

inline void store_value(DType type, void* data, std::int64_t at, float value) {
  if (type == DType::float32)
    static_cast<float*>(data)[at] = value;
  else
    static_cast<std::uint16_t*>(data)[at] =
        type == DType::float16 ? numerics::float_to_float16(value) : numerics::float_to_bfloat16(value);
}

// Normal values of many sizes.
inline float draw(Random& random) {
  const float x = static_cast<float>((random.uniform() + random.uniform() + random.uniform() - 1.5) * 4);
  return std::ldexp(x, static_cast<int>(random.below(7)) - 3);
}

}  // namespace evergemm::gpu_test
