// SPDX-License-Identifier: Apache-2.0
// libFuzzer on the validator: any call of any operator is refused in one sentence of the agreed form, or becomes a
// problem whose every span lies inside its storage. A broken promise is printed and ends the process.
#include <cstdio>
#include <cstdlib>

#include "calls.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  evergemm::fuzz::Bytes bytes(data, size);
  const evergemm::fuzz::Call call = evergemm::fuzz::any_call(bytes);
  evergemm::Prepared prepared;
  bool accepted = false;
  const std::string wrong = evergemm::fuzz::wrong_with_preparation(call, prepared, accepted);
  if (!wrong.empty()) {
    std::fprintf(stderr, "%s\n", wrong.c_str());
    std::abort();
  }
  return 0;
}
