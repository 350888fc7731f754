// SPDX-License-Identifier: Apache-2.0
// Memory that notices: buffers with 4 KiB red zones before and after, poisoned with 0xFF, and buffers that end at a
// page nobody may touch. Every test of a kernel puts its operands into one of the two. Header only, any test framework.
// Must not go here: arithmetic, what a kernel should compute.
//
//   GuardedBuffer a(bytes);           // body is 0xFF, zones hold a pattern
//   ... fill a.as<std::int8_t>() ...
//   a.seal();                         // an input: its content must not change from here on
//   GuardedBuffer out(bytes);         // an output: not sealed
//   ... run ...
//   EXPECT_EQ(a.damage(), "");  EXPECT_EQ(out.damage(), "");
//   EXPECT_EQ(out.gap_damage(rows, row_bytes, pitch_bytes), "");  // bytes between the rows still hold the poison
#pragma once
#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace evergemm::proof {

inline constexpr std::size_t kRedZoneBytes = 4096;
inline constexpr std::size_t kBodyAlignment = 4096;
inline constexpr unsigned char kPoison = 0xFF;

// FNV-1a, 64 bits: a changed byte changes it.
inline std::uint64_t hash_of(const void* data, std::size_t bytes) {
  std::uint64_t hash = 14695981039346656037ull;
  const auto* byte = static_cast<const unsigned char*>(data);
  for (std::size_t i = 0; i < bytes; ++i) hash = (hash ^ byte[i]) * 1099511628211ull;
  return hash;
}

// "" where every byte between rows (from row_bytes to pitch_bytes of each row but the last) still holds the poison.
inline std::string poison_damage(const void* body, std::size_t rows, std::size_t row_bytes, std::size_t pitch_bytes) {
  const auto* byte = static_cast<const unsigned char*>(body);
  for (std::size_t row = 0; row + 1 < rows; ++row)
    for (std::size_t i = row_bytes; i < pitch_bytes; ++i)
      if (byte[row * pitch_bytes + i] != kPoison)
        return "the gap behind row " + std::to_string(row) + " was written at byte " + std::to_string(i - row_bytes);
  return "";
}

class GuardedBuffer {
 public:
  // The body starts `offset` bytes behind a page boundary: offset 1 makes an unaligned operand.
  explicit GuardedBuffer(std::size_t bytes, std::size_t offset = 0)
      : bytes_(bytes), whole_(bytes + offset + 2 * kRedZoneBytes + kBodyAlignment) {
    storage_ = std::make_unique<unsigned char[]>(whole_);
    const auto start = reinterpret_cast<std::uintptr_t>(storage_.get()) + kRedZoneBytes;
    const std::uintptr_t aligned = (start + kBodyAlignment - 1) / kBodyAlignment * kBodyAlignment;
    body_ = storage_.get() + (aligned - reinterpret_cast<std::uintptr_t>(storage_.get())) + offset;
    for (std::size_t i = 0; i < kRedZoneBytes; ++i) {
      body_[-1 - static_cast<std::ptrdiff_t>(i)] = zone_byte(i);
      body_[bytes_ + i] = zone_byte(i);
    }
    poison();
    forbid_zones();
  }
  ~GuardedBuffer() {
    if (storage_) permit_zones();
  }
  GuardedBuffer(GuardedBuffer&&) noexcept = default;
  GuardedBuffer(const GuardedBuffer&) = delete;
  GuardedBuffer& operator=(const GuardedBuffer&) = delete;
  GuardedBuffer& operator=(GuardedBuffer&&) = delete;

  template <class T = unsigned char>
  T* as() {
    return reinterpret_cast<T*>(body_);
  }
  template <class T = unsigned char>
  const T* as() const {
    return reinterpret_cast<const T*>(body_);
  }
  std::size_t bytes() const { return bytes_; }

  void poison() {
    std::memset(body_, kPoison, bytes_);
    sealed_ = false;
  }
  // Call it when an input is filled: damage() then also reports a changed body.
  void seal() {
    sealed_ = true;
    hash_ = hash_of(body_, bytes_);
  }

  // "" where both zones are whole and a sealed body is unchanged.
  std::string damage() const {
    permit_zones();
    std::string text;
    for (std::size_t i = 0; i < kRedZoneBytes && text.empty(); ++i) {
      if (body_[-1 - static_cast<std::ptrdiff_t>(i)] != zone_byte(i))
        text = "red zone written " + std::to_string(i + 1) + " bytes before the start";
      else if (body_[bytes_ + i] != zone_byte(i))
        text = "red zone written " + std::to_string(i) + " bytes behind the end";
    }
    forbid_zones();
    if (text.empty() && sealed_ && hash_of(body_, bytes_) != hash_) text = "an input was changed";
    return text;
  }
  std::string gap_damage(std::size_t rows, std::size_t row_bytes, std::size_t pitch_bytes) const {
    return bytes_ == 0 ? "" : poison_damage(body_, rows, row_bytes, pitch_bytes);
  }

 private:
  // Differs from byte to byte, from the poison and from 0, so that a stray copy, fill or clear shows.
  static unsigned char zone_byte(std::size_t i) { return static_cast<unsigned char>(1 + (i * 167 + 91) % 251); }
  // Under AddressSanitizer the zones may not even be read.
  void forbid_zones() const {
#if defined(__SANITIZE_ADDRESS__)
    ASAN_POISON_MEMORY_REGION(body_ - kRedZoneBytes, kRedZoneBytes);
    ASAN_POISON_MEMORY_REGION(body_ + bytes_, kRedZoneBytes);
#endif
  }
  void permit_zones() const {
#if defined(__SANITIZE_ADDRESS__)
    ASAN_UNPOISON_MEMORY_REGION(body_ - kRedZoneBytes, kRedZoneBytes);
    ASAN_UNPOISON_MEMORY_REGION(body_ + bytes_, kRedZoneBytes);
#endif
  }

  std::size_t bytes_, whole_;
  std::unique_ptr<unsigned char[]> storage_;
  unsigned char* body_ = nullptr;
  bool sealed_ = false;
  std::uint64_t hash_ = 0;
};

// A buffer whose last byte is the last byte before an inaccessible page (or whose first byte is the first behind one):
// the process dies at the instruction that reads or writes past it. For kernels whose vector loads must not over-read.
class PageEdgeBuffer {
 public:
  enum class Edge { end, start };
  explicit PageEdgeBuffer(std::size_t bytes, Edge edge = Edge::end) : bytes_(bytes) {
    const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    const std::size_t inner = (bytes + page - 1) / page * page;
    whole_ = inner + 2 * page;
    base_ = mmap(nullptr, whole_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base_ == MAP_FAILED ||
        (inner > 0 && mprotect(static_cast<char*>(base_) + page, inner, PROT_READ | PROT_WRITE) != 0)) {
      std::perror("PageEdgeBuffer");
      std::abort();
    }
    body_ = static_cast<unsigned char*>(base_) + page + (edge == Edge::end ? inner - bytes : 0);
    std::memset(body_, kPoison, bytes);
  }
  ~PageEdgeBuffer() { munmap(base_, whole_); }
  PageEdgeBuffer(const PageEdgeBuffer&) = delete;
  PageEdgeBuffer& operator=(const PageEdgeBuffer&) = delete;

  template <class T = unsigned char>
  T* as() {
    return reinterpret_cast<T*>(body_);
  }
  std::size_t bytes() const { return bytes_; }

 private:
  std::size_t bytes_, whole_ = 0;
  void* base_ = nullptr;
  unsigned char* body_ = nullptr;
};

}  // namespace evergemm::proof
