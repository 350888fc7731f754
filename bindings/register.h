// SPDX-License-Identifier: Apache-2.0
// What became of registration, for the C interface.
#pragma once

namespace evergemm::bindings {

// "" when every operator is registered; otherwise one sentence. The library registers itself when it is loaded.
const char* registration_status();

}  // namespace evergemm::bindings
