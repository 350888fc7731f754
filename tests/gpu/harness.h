// SPDX-License-Identifier: Apache-2.0
// What the GPU tests stand on: a list of tests with a summary and a JUnit file, device buffers with red zones, a thread for
// every core. No framework: the lane needs nothing but the built library. Must not go here: cases, numerics.
#pragma once
#include <cuda_runtime.h>

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "cuda/registry.h"

namespace evergemm::gpu_test {

inline void require(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "CUDA error %d (%s) in %s\n", static_cast<int>(error), cudaGetErrorString(error), what);
  std::exit(2);  // the context is gone: no later result would mean anything
}

// splitmix64: the state of every random choice of a test, printed where it fails.
struct Random {
  std::uint64_t state;
  std::uint64_t next() {
    std::uint64_t x = (state += 0x9e3779b97f4a7c15ull);
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
  }
  std::int64_t below(std::int64_t limit) {
    return static_cast<std::int64_t>(next() % static_cast<std::uint64_t>(limit));
  }
  double uniform() { return static_cast<double>(next() >> 11) * 0x1p-53; }
};

// A plan of this device for what has one kernel for every problem.
inline Plan plan_here() {
  DeviceFacts facts;
  if (!cuda_facts(0, facts).ok()) {
    std::fprintf(stderr, "device 0 does not answer\n");
    std::exit(2);
  }
  Plan plan;
  plan.architecture = facts.architecture;
  plan.row = 0;
  plan.name = "only_kernel";
  return plan;
}

template <class Body>
void for_all_threads(std::int64_t count, Body body) {  // body(begin, end)
  const std::int64_t threads =
      std::max<std::int64_t>(1, std::min<std::int64_t>(count, std::thread::hardware_concurrency()));
  std::vector<std::thread> pool;
  for (std::int64_t t = 0; t < threads; ++t)
    pool.emplace_back([=] { body(count * t / threads, count * (t + 1) / threads); });
  for (std::thread& thread : pool) thread.join();
}

inline constexpr std::int64_t kZone = 4096;

// Under initcheck (tools/run_sanitizers.py sets it) the red zones of what a test only fills are memory that nobody wrote, so
// that a kernel that reads beyond an operand is found. What is not filled whole is poisoned as ever.
inline bool zones_stay_unwritten() {
  static const bool stay = std::getenv("EVERGEMM_UNWRITTEN_ZONES") != nullptr;
  return stay;
}

// Device memory with a red zone on either side; everything is 0xFF until it is filled.
class DeviceBuffer {
 public:
  explicit DeviceBuffer(std::int64_t bytes, std::int64_t shift = 0) : bytes_(bytes), shift_(shift) {
    require(cudaMalloc(&base_, static_cast<std::size_t>(whole())), "cudaMalloc");
    if (!zones_stay_unwritten())
      poison();
    else if (shift % 4 != 0)  // kernels may read the aligned word that the first byte is in
      require(cudaMemset(base_ + kZone + shift / 4 * 4, 0xFF, static_cast<std::size_t>(shift % 4)), "cudaMemset");
  }
  ~DeviceBuffer() { static_cast<void>(cudaFree(base_)); }
  DeviceBuffer(const DeviceBuffer&) = delete;
  DeviceBuffer& operator=(const DeviceBuffer&) = delete;

  char* data() {
    if (!body_written_) poison();
    return base_ + kZone + shift_;
  }
  std::int64_t bytes() const { return bytes_; }
  void poison() {
    require(cudaMemset(base_, 0xFF, static_cast<std::size_t>(whole())), "cudaMemset");
    body_written_ = zones_written_ = true;
  }
  void fill(const void* from, std::int64_t bytes) {
    body_written_ = body_written_ || bytes == bytes_;
    require(cudaMemcpy(data(), from, static_cast<std::size_t>(bytes), cudaMemcpyHostToDevice), "upload");
  }
  // The body; zones_whole says whether both red zones still hold what poison() wrote.
  std::vector<unsigned char> read(bool& zones_whole) {
    std::vector<unsigned char> all(static_cast<std::size_t>(whole()), 0xFF);
    const char* from = data();  // poisons what nothing was written to
    const std::int64_t begin = zones_written_ ? 0 : kZone + shift_;
    require(cudaMemcpy(all.data() + begin, zones_written_ ? base_ : from,
                       static_cast<std::size_t>(zones_written_ ? whole() : bytes_), cudaMemcpyDeviceToHost),
            "download");
    zones_whole = true;
    for (std::int64_t i = 0; i < kZone + shift_; ++i)
      zones_whole = zones_whole && all[static_cast<std::size_t>(i)] == 0xFF;
    for (std::int64_t i = 0; i < kZone; ++i)
      zones_whole = zones_whole && all[static_cast<std::size_t>(kZone + shift_ + bytes_ + i)] == 0xFF;
    return std::vector<unsigned char>(all.begin() + kZone + shift_, all.begin() + kZone + shift_ + bytes_);
  }

 private:
  std::int64_t whole() const { return bytes_ + shift_ + 2 * kZone; }

  char* base_ = nullptr;
  std::int64_t bytes_, shift_;
  bool body_written_ = false, zones_written_ = false;
};

struct Result {
  std::string suite, name, failure;  // failure empty: passed
  std::int64_t cases = 0;
  double seconds = 0;
};

class Report {
 public:
  // body returns "" or what failed, and counts its cases; a test that ran none fails.
  void test(const std::string& suite, const std::string& name, const std::function<std::string(std::int64_t&)>& body) {
    const auto begin = std::chrono::steady_clock::now();
    Result result{suite, name, "", 0, 0};
    result.failure = body(result.cases);
    if (result.cases == 0 && result.failure.empty()) result.failure = "ran no case";
    result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    std::printf("%s %s.%s: %lld cases, %.1f s%s%s\n", result.failure.empty() ? "pass" : "FAIL", suite.c_str(),
                name.c_str(), static_cast<long long>(result.cases), result.seconds, result.failure.empty() ? "" : ": ",
                result.failure.c_str());
    std::fflush(stdout);
    results_.push_back(result);
  }

  // Writes the JUnit file where a path is given; the exit code of the program.
  int finish(const char* junit_path) const {
    std::int64_t cases = 0, failures = 0;
    for (const Result& result : results_) {
      cases += result.cases;
      failures += result.failure.empty() ? 0 : 1;
    }
    std::printf("%zu tests, %lld cases, %lld failed\n", results_.size(), static_cast<long long>(cases),
                static_cast<long long>(failures));
    if (junit_path != nullptr) {
      std::FILE* file = std::fopen(junit_path, "w");
      if (file == nullptr) return 2;
      std::fprintf(file, "<testsuite name=\"gpu\" tests=\"%zu\" failures=\"%lld\">\n", results_.size(),
                   static_cast<long long>(failures));
      for (const Result& result : results_) {
        std::fprintf(file, "  <testcase classname=\"%s\" name=\"%s\" time=\"%.3f\" assertions=\"%lld\"",
                     result.suite.c_str(), result.name.c_str(), result.seconds, static_cast<long long>(result.cases));
        if (result.failure.empty())
          std::fprintf(file, "/>\n");
        else
          std::fprintf(file, "><failure message=\"%s\"/></testcase>\n", escaped(result.failure).c_str());
      }
      std::fprintf(file, "</testsuite>\n");
      std::fclose(file);
    }
    return failures == 0 && cases > 0 ? 0 : 1;
  }

 private:
  static std::string escaped(const std::string& text) {
    std::string out;
    for (const char letter : text)
      out += letter == '<' ? "&lt;" : letter == '&' ? "&amp;" : letter == '"' ? "&quot;" : std::string(1, letter);
    return out;
  }
  std::vector<Result> results_;
};

}  // namespace evergemm::gpu_test
