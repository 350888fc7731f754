// SPDX-License-Identifier: Apache-2.0
// The matrix instructions on the emulated multiprocessor. Stands in the place of the header that generate_wgmma.py writes.
#pragma once
#include <cstdint>

#include "machine.h"

namespace evergemm::sm90 {

template <bool kFloat, int kColumns>
struct Wgmma {
  template <class Sum>
  static void multiply(Sum (&sums)[kColumns / 2], std::uint64_t a, std::uint64_t b, int accumulate) {
    emulator::multiply(sums, kColumns, kFloat, a, b, accumulate != 0);
  }
};

}  // namespace evergemm::sm90
