// SPDX-License-Identifier: Apache-2.0
// What became of registration, for the C interface.
#pragma once
#include <cstdint>

#include "evergemm/error.h"

namespace evergemm::bindings {

// "" when every operator is registered; otherwise one sentence. The library registers itself when it is loaded.
const char* registration_status();

// Registers these operators also in the namespace of the library that they stand in for (_C): all of them or none.
Status register_dropins(const char* const* names, std::int32_t count);

}  // namespace evergemm::bindings
