// SPDX-License-Identifier: Apache-2.0
// The portable GEMM: one kernel for every PortableTile, on warp-level tensor core instructions.
//
//   copies    operand tiles into a ring of shared-memory stages: asynchronous from Ampere on, through registers on Turing; rows
//             that miss a 16-byte boundary are put together from what is aligned
//   products  each warp loads fragments of its share and multiplies; the next fragments are under way meanwhile
//   epilogue  scale, convert, store from registers; of a split k the sums as they are, which a second kernel adds in order
//
//   t   = rn32(scale_b * float(acc - azp * azp_adj))
//   out = rn_out(fma32(scale_a, t, bias))               without bias and zero points: rn_out(rn32(scale_a * t))
//   block scales: acc = sum over k-blocks of fma32(rn32(scale_a * scale_b), acc_block, acc), and out = rn_out(acc + bias)
//
// Any shape, stride and alignment that the validator admits. Must not go here: choosing a tile, launching.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "cuda/portable/parameters.h"
#include "cuda/portable/ptx.cuh"
#include "cuda/sm90/expert_problem.cuh"
#include "evergemm/problem.h"
#include "plan/portable.h"

namespace evergemm::portable {

using plan_tables::Mainloop;
using plan_tables::PortableTile;

template <PortableTile kTile>
struct Gemm {
  static_assert(plan_tables::valid(kTile), "portable tile");
  static constexpr bool kFloat = kTile.mainloop != Mainloop::int8;
  static constexpr bool kPromoted = kTile.mainloop == Mainloop::fp8_promoted;
  static constexpr int kM = kTile.m, kN = kTile.n, kDepth = kTile.k, kStages = kTile.stages;
  static constexpr int kThreads = plan_tables::threads_of(kTile);
  static constexpr int kWarpM = kM / kTile.warps_m, kWarpN = kN / kTile.warps_n;
  static constexpr int kRowsOfWarp = kWarpM / 16, kColumnsOfWarp = kWarpN / 8;  // products of 16 x 8
  static constexpr int kSteps = kDepth / 32;
  static constexpr int kPieces = kDepth / 16;  // of 16 bytes, in a line of a stage
  static constexpr int kLinesAtOnce = kThreads / kPieces;
  static constexpr int kCopiesA = kM / kLinesAtOnce, kCopiesB = kN / kLinesAtOnce;
  static constexpr int kStageBytes = (kM + kN) * kDepth;
  // Lines of b are kept in an order in which a thread's results of kGroup products stand side by side: 2 kGroup columns.
  static constexpr int kGroup = kColumnsOfWarp >= 4 ? 4 : 2;
  static constexpr int kRun = 2 * kGroup;
  static constexpr int kBlockTiles = 128 / kDepth;  // stages between promotions
  // Tiles that seldom have all their rows do not copy those that are missing.
  static constexpr bool kSkipsMissingRows = kM <= 32;
  using Accumulator = std::conditional_t<kFloat, float, std::int32_t>;
  using Sums = Accumulator[kRowsOfWarp][kColumnsOfWarp][4];

  // ---- copies ------------------------------------------------------------------------------------------------------

  // Where this thread's copies of one operand come from: kCount lines, always the same piece of them.
  template <int kCount>
  struct Operand {
    const std::uint8_t* at[kCount];  // in the stage that is copied next
    bool exists[kCount];             // the tile's lines up to here are the operand's
    bool aligned;
    __device__ __forceinline__ void advance() {
#pragma unroll
      for (int i = 0; i < kCount; ++i) at[i] += kDepth;
    }
  };

  // A line's place in the tile -> which line of b stands there.
  static __device__ __forceinline__ int column_at(int place) {
    constexpr int kBlock = 8 * kGroup;
    const int in_block = place % kBlock, product = in_block / 8, slot = in_block % 8;
    return place - in_block + slot / 2 * kRun + product * 2 + slot % 2;
  }
  // 16-byte pieces of a line change places so that the eight lines of a matrix load lie in different banks.
  static __device__ __forceinline__ int swizzle(int line) { return kPieces == 8 ? line & 7 : (line >> 1) & 3; }

  // Where copy `copy` of this thread comes from. Places behind the last line hold lines of the tile before, or that line once
  // more where there is none: what comes of them is not stored.
  template <bool kIsB>
  static __device__ __forceinline__ const std::uint8_t* line_at(const void* data, std::int64_t stride,
                                                                std::int64_t first_line, std::int64_t lines, int copy) {
    constexpr int kLines = kIsB ? kN : kM;
    const int place = static_cast<int>(threadIdx.x) / kPieces + copy * kLinesAtOnce;
    std::int64_t line = first_line + (kIsB ? column_at(place) : place);
    if (line >= lines) line = line < kLines ? lines - 1 : line - kLines;
    return static_cast<const std::uint8_t*>(data) + line * stride + threadIdx.x % kPieces * 16;
  }
  template <bool kIsB, int kCount>
  static __device__ __forceinline__ Operand<kCount> operand(const void* data, std::int64_t stride,
                                                            std::int64_t first_line, std::int64_t lines,
                                                            std::int64_t begin) {
    Operand<kCount> result;
    result.aligned = ((reinterpret_cast<std::uintptr_t>(data) | (lines > 1 ? stride : 0)) & 15) == 0;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      result.at[i] = line_at<kIsB>(data, stride, first_line, lines, i) + begin;
      result.exists[i] = first_line + static_cast<int>(threadIdx.x) / kPieces + i * kLinesAtOnce < lines;
    }
    return result;
  }
  // This thread's first place in a stage; its copies are kLinesAtOnce lines apart.
  static __device__ __forceinline__ std::uint32_t first_place() {
    const int line = static_cast<int>(threadIdx.x) / kPieces, piece = static_cast<int>(threadIdx.x) % kPieces;
    return line * kDepth + ((piece ^ swizzle(line)) << 4);
  }

  // 16 bytes from `from` on of which `left` exist, at any address.
  static __device__ __forceinline__ uint4 gather(const std::uint8_t* from, std::int64_t left) {
    std::uint32_t words[4] = {};
    if (left >= 20) {  // the aligned words around them belong to this line, or to the word that its first byte is in
      const int shift = static_cast<int>(reinterpret_cast<std::uintptr_t>(from) & 3);
      const std::uint32_t* at = reinterpret_cast<const std::uint32_t*>(from - shift);
      std::uint32_t low = __ldg(at);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const std::uint32_t high = shift == 0 && i == 3 ? 0 : __ldg(at + i + 1);
        words[i] = __funnelshift_r(low, high, shift * 8);
        low = high;
      }
    } else {
#pragma unroll
      for (int i = 0; i < 16; ++i)
        if (i < left) words[i / 4] |= static_cast<std::uint32_t>(__ldg(from + i)) << (i % 4 * 8);
    }
    return make_uint4(words[0], words[1], words[2], words[3]);
  }
  // Operands that miss a 16-byte boundary: piece by piece. `left`: bytes of k from this thread's piece on, after `done`.
  template <bool kIsB, int kCount>
  static __device__ __forceinline__ void gather_operand(const void* data, std::int64_t stride, std::int64_t first_line,
                                                        std::int64_t lines, std::uint32_t to, std::int64_t done,
                                                        std::int64_t left) {
#pragma unroll 1
    for (int i = 0; i < kCount; ++i)
      ptx::store_shared(to + i * kLinesAtOnce * kDepth,
                        gather(line_at<kIsB>(data, stride, first_line, lines, i) + done, left));
  }

  // ---- products ----------------------------------------------------------------------------------------------------

  struct Fragments {
    std::uint32_t a[kRowsOfWarp][4];
    std::uint32_t b[kColumnsOfWarp][2];
  };
  // Where this lane points in a stage: a's lines first, then b's.
  struct Lane {
    std::uint32_t a, b;
    int a_swizzle, b_swizzle;
    int a_half, b_half;  // which 16 of the 32 bytes of a step

    __device__ __forceinline__ Lane(int warp_row, int warp_column) {
      const int lane = threadIdx.x % 32;
      const int a_line = warp_row + lane % 16, b_line = warp_column + lane / 16 * 8 + lane % 8;
      a = a_line * kDepth;
      b = (kM + b_line) * kDepth;
      a_swizzle = swizzle(a_line);
      b_swizzle = swizzle(b_line);
      a_half = lane / 16;
      b_half = lane / 8 % 2;
    }
  };

  static __device__ __forceinline__ void load_fragments(const Lane& lane, std::uint32_t stage, int step,
                                                        Fragments& fragments) {
    const std::uint32_t a = stage + lane.a + (((step * 2 + lane.a_half) ^ lane.a_swizzle) << 4);
    const std::uint32_t b = stage + lane.b + (((step * 2 + lane.b_half) ^ lane.b_swizzle) << 4);
#pragma unroll
    for (int i = 0; i < kRowsOfWarp; ++i)
      ptx::load_matrices(a + i * 16 * kDepth, fragments.a[i][0], fragments.a[i][1], fragments.a[i][2],
                         fragments.a[i][3]);
#pragma unroll
    for (int j = 0; j < kColumnsOfWarp; j += 2)
      ptx::load_matrices(b + j * 8 * kDepth, fragments.b[j][0], fragments.b[j][1], fragments.b[j + 1][0],
                         fragments.b[j + 1][1]);
  }

  static __device__ __forceinline__ void multiply(const Fragments& fragments, Sums& sums) {
    if constexpr (!kFloat) {
#pragma unroll
      for (int i = 0; i < kRowsOfWarp; ++i)
#pragma unroll
        for (int j = 0; j < kColumnsOfWarp; ++j) ptx::multiply_int8(sums[i][j], fragments.a[i], fragments.b[j]);
    } else if constexpr (ptx::kMultipliesFloat8) {
#pragma unroll
      for (int i = 0; i < kRowsOfWarp; ++i)
#pragma unroll
        for (int j = 0; j < kColumnsOfWarp; ++j) ptx::multiply_float8(sums[i][j], fragments.a[i], fragments.b[j]);
    } else {
      std::uint32_t a[kRowsOfWarp][8];
#pragma unroll
      for (int i = 0; i < kRowsOfWarp; ++i)
#pragma unroll
        for (int r = 0; r < 4; ++r) ptx::widen_float8(fragments.a[i][r], a[i][2 * r], a[i][2 * r + 1]);
#pragma unroll
      for (int j = 0; j < kColumnsOfWarp; ++j) {
        std::uint32_t b[4];
#pragma unroll
        for (int r = 0; r < 2; ++r) ptx::widen_float8(fragments.b[j][r], b[2 * r], b[2 * r + 1]);
#pragma unroll
        for (int i = 0; i < kRowsOfWarp; ++i) ptx::multiply_float16(sums[i][j], a[i], b);
      }
    }
  }

  // ---- promotion ---------------------------------------------------------------------------------------------------

  // Block scales of the rows of this thread and of the tile's columns; without block scales everything is multiplied by one.
  struct BlockScales {
    float rows[kRowsOfWarp][2];
    float column;
  };
  static __device__ __forceinline__ void load_block_scales(const GemmProblem& p, std::int64_t first_row,
                                                           std::int64_t first_column, std::int64_t block,
                                                           BlockScales& scales) {
    const bool blocks = p.scale_a.mode == ScaleMode::BlockWise1x128;
    scales.column =
        blocks
            ? __ldg(p.scale_b.data + first_column / kScaleBlock * p.scale_b.outer_stride + block * p.scale_b.k_stride)
            : 1.0f;
#pragma unroll
    for (int i = 0; i < kRowsOfWarp; ++i)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const std::int64_t row = first_row + i * 16 + half * 8;
        scales.rows[i][half] = blocks && row < p.m
                                   ? __ldg(p.scale_a.data + row * p.scale_a.outer_stride + block * p.scale_a.k_stride)
                                   : 1.0f;
      }
  }
  static __device__ __forceinline__ void promote(const BlockScales& scales, Sums& partial, Sums& sums) {
#pragma unroll
    for (int i = 0; i < kRowsOfWarp; ++i)
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const float scale = __fmul_rn(scales.rows[i][c / 2], scales.column);
#pragma unroll
        for (int j = 0; j < kColumnsOfWarp; ++j) {
          const float block = ptx::kSumScale == 1.0f ? partial[i][j][c] : __fmul_rn(partial[i][j][c], ptx::kSumScale);
          sums[i][j][c] = __fmaf_rn(scale, block, sums[i][j][c]);
          partial[i][j][c] = 0;
        }
      }
  }

  // ---- a tile ------------------------------------------------------------------------------------------------------

  static __device__ __forceinline__ void clear(Sums& sums) {
#pragma unroll
    for (int i = 0; i < kRowsOfWarp; ++i)
#pragma unroll
      for (int j = 0; j < kColumnsOfWarp; ++j)
#pragma unroll
        for (int c = 0; c < 4; ++c) sums[i][j][c] = 0;
  }

  // Stages that tile `tile` of k is copied to and read from.
  static __device__ __forceinline__ int after(int stage) { return stage + 1 == kStages ? 0 : stage + 1; }

  // Stages of k: `count` from `first` on, which begins a block of 128.
  struct Range {
    int first, count;
  };
  static __device__ __forceinline__ int stages_of(const GemmProblem& p) {
    return static_cast<int>((p.k + kDepth - 1) / kDepth);  // counts_in_32_bits()
  }
  static __device__ __forceinline__ int warp_row() {
    return static_cast<int>(threadIdx.x) / 32 % kTile.warps_m * kWarpM;
  }
  static __device__ __forceinline__ int warp_column() {
    return static_cast<int>(threadIdx.x) / 32 / kTile.warps_m * kWarpN;
  }
  // This thread's first result within its tile.
  static __device__ __forceinline__ int thread_row() { return warp_row() + static_cast<int>(threadIdx.x) % 32 / 4; }
  static __device__ __forceinline__ int thread_column() {
    return warp_column() + static_cast<int>(threadIdx.x) % 4 * kRun;
  }

  static __device__ __forceinline__ void multiply_range(const GemmProblem& p, std::int64_t row, std::int64_t column,
                                                        Range range, std::uint32_t shared, Sums& sums) {
    const Lane lane(warp_row(), warp_column());
    const int tiles = range.count;
    const std::int64_t begin = std::int64_t{range.first} * kDepth;
    Operand<kCopiesA> a = operand<false, kCopiesA>(p.a, p.a_stride, row, p.m, begin);
    Operand<kCopiesB> b = operand<true, kCopiesB>(p.b, p.b_stride, column, p.n, begin);
    // Larger tiles have rows of b in the places of missing ones, which this block copies anyway: one token's row in all of them,
    // for every block, would crowd the memory that it is in (three times the time with 64 of 128 rows missing).
    if constexpr (!kSkipsMissingRows)
#pragma unroll
      for (int i = 0; i < kCopiesA; ++i)
        if (!a.exists[i]) a.at[i] = b.at[i % kCopiesB];
    const bool aligned = a.aligned && b.aligned;
    const std::uint32_t place_a = shared + first_place(), place_b = place_a + kM * kDepth;
    // Bytes of k from this thread's piece on, in the last stage; all stages but that are full.
    const std::int64_t in_last = p.k - begin - static_cast<std::int64_t>(tiles - 1) * kDepth;
    const int left_in_last =
        static_cast<int>(in_last < kDepth ? in_last : kDepth) - static_cast<int>(threadIdx.x) % kPieces * 16;
    const int tail = left_in_last >= 16 ? 16 : left_in_last > 0 ? left_in_last : 0;
    const auto gather_stage = [&](std::uint32_t to_a, std::uint32_t to_b, int tile) {
      const std::int64_t done = begin + std::int64_t{tile} * kDepth;
      const std::int64_t left = std::int64_t{tiles - 1 - tile} * kDepth + left_in_last;
      gather_operand<false, kCopiesA>(p.a, p.a_stride, row, p.m, to_a, done, left);
      gather_operand<true, kCopiesB>(p.b, p.b_stride, column, p.n, to_b, done, left);
    };

    clear(sums);
    Fragments fragments[2];
    BlockScales scales;
    std::conditional_t<kPromoted, Sums, Accumulator> partial;
    if constexpr (kPromoted) clear(partial);
    const auto multiply_step = [&](const Fragments& step) {
      if constexpr (kPromoted)
        multiply(step, partial);
      else
        multiply(step, sums);
    };
    const auto begin_tile = [&](int tile) {
      if constexpr (kPromoted)
        if (tile % kBlockTiles == 0)
          load_block_scales(p, row + thread_row(), column, (range.first + tile) / kBlockTiles, scales);
    };
    const auto end_tile = [&](int tile) {
      if constexpr (kPromoted)
        if (tile % kBlockTiles == kBlockTiles - 1 || tile + 1 == tiles) promote(scales, partial, sums);
    };

    if constexpr (ptx::kAsynchronousCopies) {
      // Without branches, so that these instructions stand among the products.
      const auto copy_stage = [&](int stage, int tile) {
        const std::uint32_t to_a = place_a + stage * kStageBytes, to_b = place_b + stage * kStageBytes;
        const bool copies = aligned && tile < tiles;
        const int bytes = tile + 1 < tiles ? 16 : tail;
#pragma unroll
        for (int i = 0; i < kCopiesA; ++i)
          ptx::copy_asynchronously(to_a + i * kLinesAtOnce * kDepth, a.at[i], bytes,
                                   copies && (!kSkipsMissingRows || a.exists[i]));
#pragma unroll
        for (int i = 0; i < kCopiesB; ++i)
          ptx::copy_asynchronously(to_b + i * kLinesAtOnce * kDepth, b.at[i], bytes, copies);
        a.advance();
        b.advance();
        ptx::commit_copies();  // empty groups keep the count
      };
      const auto gather_stage_if = [&](int stage, int tile) {
        if (!aligned && tile < tiles) gather_stage(place_a + stage * kStageBytes, place_b + stage * kStageBytes, tile);
      };
#pragma unroll 1
      for (int stage = 0; stage < kStages - 1; ++stage) {
        copy_stage(stage, stage);
        gather_stage_if(stage, stage);
      }
      // The same where every copy is whole: nothing but the copies themselves.
      const auto copy_whole_stage = [&](int stage) {
        const std::uint32_t to_a = place_a + stage * kStageBytes, to_b = place_b + stage * kStageBytes;
#pragma unroll
        for (int i = 0; i < kCopiesA; ++i) {
          if constexpr (kSkipsMissingRows)
            ptx::copy_asynchronously(to_a + i * kLinesAtOnce * kDepth, a.at[i], 16, a.exists[i]);
          else
            ptx::copy_whole_asynchronously(to_a + i * kLinesAtOnce * kDepth, a.at[i]);
        }
#pragma unroll
        for (int i = 0; i < kCopiesB; ++i) ptx::copy_whole_asynchronously(to_b + i * kLinesAtOnce * kDepth, b.at[i]);
        a.advance();
        b.advance();
        ptx::commit_copies();
      };
      int reads = 0, writes = kStages - 1;
      ptx::wait_for_copies<kStages - 2>();
      __syncthreads();
      if (tiles > 0) load_fragments(lane, shared, 0, fragments[0]);
      const auto multiply_tile = [&](int tile, auto copies_are_whole) {
        begin_tile(tile);
#pragma unroll
        for (int step = 0; step < kSteps; ++step) {
          if (step == kSteps - 1) {  // all of this stage is in registers: the next one
            ptx::wait_for_copies<kStages - 2>();
            __syncthreads();
            reads = after(reads);
          }
          load_fragments(lane, shared + reads * kStageBytes, (step + 1) % kSteps, fragments[(step + 1) % 2]);
          if (step == 0) {
            if constexpr (decltype(copies_are_whole)::value)
              copy_whole_stage(writes);
            else
              copy_stage(writes, tile + kStages - 1);
          }
          multiply_step(fragments[step % 2]);
        }
        if constexpr (!decltype(copies_are_whole)::value) gather_stage_if(writes, tile + kStages - 1);
        writes = after(writes);
        end_tile(tile);
      };
      int tile = 0;
      if (!kPromoted && aligned)  // promotion has no registers to spare for a second loop
#pragma unroll 1
        for (; tile + kStages < tiles; ++tile) multiply_tile(tile, std::true_type());
#pragma unroll 1
      for (; tile < tiles; ++tile) multiply_tile(tile, std::false_type());
      ptx::wait_for_copies<0>();
    } else {
      static_assert(ptx::kAsynchronousCopies || kStages == 2, "stages through registers take turns");
      uint4 held_a[kCopiesA], held_b[kCopiesB];
      const auto request = [&](const std::uint8_t* from, int bytes) {
        return bytes == 16 ? __ldg(reinterpret_cast<const uint4*>(from)) : gather(from, bytes);
      };
      const auto request_stage = [&](int tile) {
        if (!aligned) return;
        const int bytes = tile + 1 < tiles ? 16 : tail;
#pragma unroll
        for (int i = 0; i < kCopiesA; ++i) held_a[i] = request(a.at[i], bytes);
#pragma unroll
        for (int i = 0; i < kCopiesB; ++i) held_b[i] = request(b.at[i], bytes);
      };
      const auto deliver_stage = [&](int stage, int tile) {
        const std::uint32_t to_a = place_a + stage * kStageBytes, to_b = place_b + stage * kStageBytes;
        if (aligned) {
#pragma unroll
          for (int i = 0; i < kCopiesA; ++i) ptx::store_shared(to_a + i * kLinesAtOnce * kDepth, held_a[i]);
#pragma unroll
          for (int i = 0; i < kCopiesB; ++i) ptx::store_shared(to_b + i * kLinesAtOnce * kDepth, held_b[i]);
        } else {
          gather_stage(to_a, to_b, tile);
        }
        a.advance();
        b.advance();
      };
      if (tiles > 0) {
        request_stage(0);
        deliver_stage(0, 0);
      }
      __syncthreads();
      int reads = 0;
#pragma unroll 1
      for (int tile = 0; tile < tiles; ++tile) {
        const bool more = tile + 1 < tiles;
        if (more) request_stage(tile + 1);
        begin_tile(tile);
        load_fragments(lane, shared + reads * kStageBytes, 0, fragments[0]);
#pragma unroll
        for (int step = 0; step < kSteps; ++step) {
          if (step + 1 < kSteps)
            load_fragments(lane, shared + reads * kStageBytes, step + 1, fragments[(step + 1) % 2]);
          multiply_step(fragments[step % 2]);
        }
        end_tile(tile);
        reads = after(reads);
        if (more) deliver_stage(reads, tile + 1);
        __syncthreads();
      }
    }
  }
  static __device__ __forceinline__ void compute_tile(const GemmProblem& p, std::int64_t row, std::int64_t column,
                                                      std::uint32_t shared) {
    Sums sums;
    multiply_range(p, row, column, Range{0, stages_of(p)}, shared, sums);
    store_tile(p, row + thread_row(), column + thread_column(), sums);
  }

  // ---- epilogue ----------------------------------------------------------------------------------------------------

  static __device__ __forceinline__ float widen(const GemmProblem& p, std::uint16_t bits) {
    return p.output_dtype == DType::float16 ? numerics::float16_to_float(bits) : numerics::bfloat16_to_float(bits);
  }
  static __device__ __forceinline__ float load_bias(const GemmProblem& p, std::int64_t column) {
    const std::int64_t at = column * p.bias_stride;
    if (p.output_dtype == DType::float32) return __ldg(static_cast<const float*>(p.bias) + at);
    return widen(p, __ldg(static_cast<const std::uint16_t*>(p.bias) + at));
  }

  // kRun neighbours of one row, of which `left` exist.
  static __device__ __forceinline__ void store_run(const GemmProblem& p, std::int64_t at, const float (&values)[kRun],
                                                   std::int64_t left, bool vectors) {
    if (p.output_dtype == DType::float32) {
      float* to = static_cast<float*>(p.out) + at;
      if (vectors && left >= kRun) {
#pragma unroll
        for (int i = 0; i < kRun; i += 4)
          *reinterpret_cast<float4*>(to + i) = make_float4(values[i], values[i + 1], values[i + 2], values[i + 3]);
        return;
      }
#pragma unroll
      for (int i = 0; i < kRun; ++i)
        if (i < left) to[i] = values[i];
      return;
    }
    std::uint32_t words[kGroup];
#pragma unroll
    for (int i = 0; i < kGroup; ++i)
      words[i] = p.output_dtype == DType::float16 ? ptx::pack_float16(values[2 * i], values[2 * i + 1])
                                                  : ptx::pack_bfloat16(values[2 * i], values[2 * i + 1]);
    std::uint16_t* to = static_cast<std::uint16_t*>(p.out) + at;
    if (vectors && left >= kRun) {
      if constexpr (kGroup == 4)
        *reinterpret_cast<uint4*>(to) = make_uint4(words[0], words[1], words[2], words[3]);
      else
        *reinterpret_cast<uint2*>(to) = make_uint2(words[0], words[1]);
      return;
    }
#pragma unroll
    for (int i = 0; i < kRun; ++i)
      if (i < left) to[i] = static_cast<std::uint16_t>(words[i / 2] >> (i % 2 * 16));
  }

  // `row`, `column`: of this thread's first result; its rows are 8 apart, its runs of columns 4 kRun.
  static __device__ __forceinline__ void store_tile(const GemmProblem& p, std::int64_t row, std::int64_t column,
                                                    const Sums& sums) {
    const std::int64_t item = p.output_dtype == DType::float32 ? 4 : 2;
    constexpr int kVector = 16;
    const bool vectors =
        ((reinterpret_cast<std::uintptr_t>(p.out) | static_cast<std::uintptr_t>(p.out_stride * item)) % kVector) == 0;
    const bool blocks = kPromoted && p.scale_a.mode == ScaleMode::BlockWise1x128;
    const bool adds = p.bias != nullptr || p.has_azp;
    // All rows' values are asked for before the first is used: behind a branch each would wait for memory by itself.
    float scale_a[kRowsOfWarp][2];
    std::uint32_t zero_a[kRowsOfWarp][2];
#pragma unroll
    for (int i = 0; i < kRowsOfWarp; ++i)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const std::int64_t wanted = row + i * 16 + half * 8, at = wanted < p.m ? wanted : p.m - 1;
        scale_a[i][half] = blocks ? 1.0f : __ldg(p.scale_a.data + at * p.scale_a.outer_stride);
        zero_a[i][half] = 0;
        if constexpr (!kFloat)
          if (p.has_azp)
            zero_a[i][half] = p.azp != nullptr ? static_cast<std::uint32_t>(__ldg(p.azp + at * p.azp_stride)) : 1u;
      }
#pragma unroll
    for (int group = 0; group < kColumnsOfWarp / kGroup; ++group) {
      const std::int64_t first = column + group * 8 * kGroup, left = p.n - first;
      if (left <= 0) return;
      float scale_b[kRun], bias[kRun];
      std::uint32_t zero_b[kRun];
#pragma unroll
      for (int i = 0; i < kRun; ++i) {
        const std::int64_t at = i < left ? first + i : first;
        scale_b[i] = blocks ? 1.0f : __ldg(p.scale_b.data + at * p.scale_b.outer_stride);
        // -0 is added without a trace: not even a zero's sign changes
        bias[i] = p.bias != nullptr ? load_bias(p, at) : adds ? 0.0f : -0.0f;
        zero_b[i] = 0;
        if constexpr (!kFloat)
          if (p.has_azp) zero_b[i] = static_cast<std::uint32_t>(__ldg(p.azp_adj + at * p.azp_adj_stride));
      }
#pragma unroll
      for (int i = 0; i < kRowsOfWarp; ++i)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const std::int64_t r = row + i * 16 + half * 8;
          if (r >= p.m) continue;
          float values[kRun];
#pragma unroll
          for (int v = 0; v < kRun; ++v) {
            const Accumulator acc = sums[i][group * kGroup + v / 2][half * 2 + v % 2];
            float sum;
            if constexpr (kFloat) {
              sum = kPromoted || ptx::kSumScale == 1.0f ? acc : __fmul_rn(acc, ptx::kSumScale);
            } else {  // modulo 2^32
              sum = __int2float_rn(
                  static_cast<std::int32_t>(static_cast<std::uint32_t>(acc) - zero_a[i][half] * zero_b[v]));
            }
            values[v] = __fmaf_rn(scale_a[i][half], __fmul_rn(scale_b[v], sum), bias[v]);
          }
          store_run(p, r * p.out_stride + first, values, left, vectors);
        }
    }
  }

  // ---- the kernel --------------------------------------------------------------------------------------------------

  // Which tile block `index` of a grid computes: groups of row tiles, all columns of a group before the next.
  struct Tile {
    std::int64_t row, column;
  };
  static __device__ __forceinline__ Tile tile_at(const Parameters& parameters, unsigned index) {
    static_assert(kRasterGroup == 8);  // counts_in_32_bits() of plan/portable.h reckons with it
    const unsigned in_group = kRasterGroup * static_cast<unsigned>(parameters.tiles_columns);
    const unsigned group = index / in_group, first = group * kRasterGroup;
    const unsigned height = min(static_cast<unsigned>(parameters.tiles_rows) - first, unsigned{kRasterGroup});
    const unsigned rest = index - group * in_group;
    return Tile{std::int64_t{first + rest % height} * kM, std::int64_t{rest / height} * kN};
  }

  static __device__ __forceinline__ void run(const Parameters& parameters) {
    extern __shared__ __align__(128) std::uint8_t shared_memory[];
    ptx::wait_for_previous_kernel();
    ptx::allow_next_kernel();
    const Tile tile = tile_at(parameters, blockIdx.x);
    const GemmProblem& p = parameters.problem;
    const int stages = stages_of(p);
    Range range{0, stages};
    if (parameters.parts > 1) {
      range.first = static_cast<int>(blockIdx.y) * parameters.blocks_of_part * kBlockTiles;
      range.count = min(parameters.blocks_of_part * kBlockTiles, stages - range.first);
    }
    Sums sums;
    multiply_range(p, tile.row, tile.column, range, ptx::shared_address(shared_memory), sums);
    if (parameters.parts > 1)
      store_part(parameters, sums);
    else
      store_tile(p, tile.row + thread_row(), tile.column + thread_column(), sums);
  }

  // ---- split k -----------------------------------------------------------------------------------------------------
  // A part's sums stand in the workspace as threads hold them: four of one thread side by side, then the next thread's.

  static constexpr int kQuads = kRowsOfWarp * kColumnsOfWarp;
  using Quad = std::conditional_t<kFloat, float4, int4>;

  static __device__ __forceinline__ Quad* part_at(const Parameters& parameters, unsigned part) {
    return static_cast<Quad*>(parameters.partial) +
           (std::int64_t{part} * gridDim.x + blockIdx.x) * (kQuads * kThreads) + threadIdx.x;
  }
  static __device__ __forceinline__ void store_part(const Parameters& parameters, const Sums& sums) {
    Quad* to = part_at(parameters, blockIdx.y);
#pragma unroll
    for (int i = 0; i < kRowsOfWarp; ++i)
#pragma unroll
      for (int j = 0; j < kColumnsOfWarp; ++j, to += kThreads)
        *to = Quad{sums[i][j][0], sums[i][j][1], sums[i][j][2], sums[i][j][3]};
  }

  // The second kernel: a tile's parts in ascending order of k.
  static __device__ __forceinline__ void run_sum(const Parameters& parameters) {
    ptx::wait_for_previous_kernel();
    ptx::allow_next_kernel();
    const Tile tile = tile_at(parameters, blockIdx.x);
    Sums sums;
    clear(sums);
#pragma unroll 2
    for (int part = 0; part < parameters.parts; ++part) {
      const Quad* from = part_at(parameters, static_cast<unsigned>(part));
#pragma unroll
      for (int i = 0; i < kRowsOfWarp; ++i)
#pragma unroll
        for (int j = 0; j < kColumnsOfWarp; ++j, from += kThreads) {
          const Quad quad = *from;
          add(sums[i][j][0], quad.x);
          add(sums[i][j][1], quad.y);
          add(sums[i][j][2], quad.z);
          add(sums[i][j][3], quad.w);
        }
    }
    store_tile(parameters.problem, tile.row + thread_row(), tile.column + thread_column(), sums);
  }
  static __device__ __forceinline__ void add(float& sum, float part) { sum = __fadd_rn(sum, part); }
  static __device__ __forceinline__ void add(std::int32_t& sum, std::int32_t part) { sum += part; }

  // One product an expert; the tiles that there are come from grouped_schedule.cu. Columns of a row tile lie side by side, so
  // that an expert's weights pass through L2 once for as many row tiles as are at work.
  static __device__ __forceinline__ void run_grouped(const GroupedParameters& parameters) {
    extern __shared__ __align__(128) std::uint8_t shared_memory[];
    __shared__ __align__(alignof(GemmProblem)) std::uint8_t product_memory[sizeof(GemmProblem)];
    GemmProblem& product = *reinterpret_cast<GemmProblem*>(product_memory);
    ptx::wait_for_previous_kernel();
    ptx::allow_next_kernel();
    const Schedule& schedule = parameters.schedule;
    const std::int64_t tiles = *schedule.row_tile_count * parameters.tiles_columns;
    for (std::int64_t index = blockIdx.x; index < tiles; index += gridDim.x) {
      const std::int64_t row_tile = index / parameters.tiles_columns;
      const RowTile at = schedule.row_tiles[row_tile];
      if (threadIdx.x == 0) {
        product = sm90::expert_problem(parameters.problem, at.expert, schedule.shares[at.expert]);
      }
      __syncthreads();
      compute_tile(product, std::int64_t{at.tile} * kM, (index - row_tile * parameters.tiles_columns) * kN,
                   ptx::shared_address(shared_memory));
      __syncthreads();  // the stages and the product are for the next tile now
    }
  }
};

}  // namespace evergemm::portable
