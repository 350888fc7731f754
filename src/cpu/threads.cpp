// SPDX-License-Identifier: Apache-2.0
// parallel_for_threads of run.h: threads for programs that have no pool. Torch callers bring torch's own.
#include <algorithm>
#include <exception>
#include <thread>
#include <vector>

#include "evergemm/run.h"

namespace evergemm {

void parallel_for_threads(std::int64_t begin, std::int64_t end, std::int64_t grain, ParallelForBody body,
                          void* context) {
  if (begin >= end) return;
  const std::int64_t length = end - begin;
  const std::int64_t cores = std::max<std::int64_t>(1, std::thread::hardware_concurrency());
  const std::int64_t pieces = std::clamp<std::int64_t>(length / std::max<std::int64_t>(1, grain), 1, cores);
  std::int64_t first = begin;
  std::vector<std::thread> threads;
  try {
    threads.reserve(static_cast<std::size_t>(pieces - 1));
    for (std::int64_t piece = 0; piece + 1 < pieces; ++piece) {
      const std::int64_t last = first + (end - first) / (pieces - piece);
      threads.emplace_back(body, context, first, last);
      first = last;
    }
  } catch (const std::exception&) {
    // No memory or no more threads to be had: the calling thread does the rest.
  }
  body(context, first, end);
  for (std::thread& thread : threads) thread.join();
}

}  // namespace evergemm
