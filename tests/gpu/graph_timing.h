// SPDX-License-Identifier: Apache-2.0
// Device time of calls that follow each other: replays of a captured graph. For the benchmarks of this folder whose contenders
// do not take turns (row_bench has rounds of its own). Must not go here: operands, tables.
#pragma once
#include <algorithm>
#include <array>
#include <functional>

#include "harness.h"

namespace evergemm::gpu_test {

// Microseconds of one of `calls` calls captured in one graph: the median of 5 rounds of `times` replays. The caller has made
// one call before, so that whatever a first call sets up is there.
inline double replayed_microseconds(cudaStream_t stream, int calls, int times, const std::function<void(int)>& call) {
  require(cudaStreamSynchronize(stream), "warm up");
  cudaGraph_t graph;
  cudaGraphExec_t executable;
  require(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
  for (int i = 0; i < calls; ++i) call(i);
  require(cudaStreamEndCapture(stream, &graph), "end of capture");
  require(cudaGraphInstantiate(&executable, graph, 0), "instantiate");
  cudaEvent_t begin, end;
  require(cudaEventCreate(&begin), "event");
  require(cudaEventCreate(&end), "event");
  std::array<double, 5> rounds;
  for (double& round : rounds) {
    require(cudaGraphLaunch(executable, stream), "replay");
    require(cudaEventRecord(begin, stream), "event");
    for (int i = 0; i < times; ++i) require(cudaGraphLaunch(executable, stream), "replay");
    require(cudaEventRecord(end, stream), "event");
    require(cudaEventSynchronize(end), "replays");
    float milliseconds;
    require(cudaEventElapsedTime(&milliseconds, begin, end), "elapsed");
    round = milliseconds * 1e3 / times / calls;
  }
  std::sort(rounds.begin(), rounds.end());
  require(cudaEventDestroy(begin), "destroy");
  require(cudaEventDestroy(end), "destroy");
  require(cudaGraphExecDestroy(executable), "destroy");
  require(cudaGraphDestroy(graph), "destroy");
  return rounds[2];
}

}  // namespace evergemm::gpu_test
