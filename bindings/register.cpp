// SPDX-License-Identifier: Apache-2.0
// Registers the operators when the library is loaded, also for C++ programs that have no Python. Every return code is
// checked; after a failure everything is taken back and the reason is kept (registration_status). Nothing here throws or
// terminates: torch's own static registrations end the process on a bad schema and crash on a second copy of a library.
#include "register.h"

#include <cstdio>
#include <cstring>

#include "compat.h"
#include "schema.h"

namespace evergemm::bindings {

namespace {

constexpr const char* kNamespace = "evergemm";
constexpr const char* kFile = "evergemm/bindings/register.cpp";  // shown by torch where a name is taken twice

constexpr std::int32_t kMaxLibraries = 8;

// The registrations of this copy. They live as long as the process: the library is linked with -z nodelete.
struct Registration {
  TorchLibraryHandle libraries[kMaxLibraries] = {};
  std::int32_t count = 0;
  char status[1024] = "registration has not run";
};
constinit Registration registration;  // ready before any constructor runs

bool failed(const char* doing, const char* with) noexcept {
  char* out = registration.status;
  const std::size_t size = sizeof registration.status;
  std::snprintf(out, size, "torch refused to %s %s", doing, with);
  try {
    const std::string text = last_torch_error();
    const std::size_t used = std::strlen(out);
    if (!text.empty()) std::snprintf(out + used, size - used, ": %s", text.c_str());
  } catch (...) {  // no memory for torch's text: ours stands
  }
  while (registration.count > 0) aoti_torch_delete_library_object(registration.libraries[--registration.count]);
  return false;
}

bool kept(TorchLibraryHandle library) {
  registration.libraries[registration.count++] = library;
  return true;
}

bool define() {
  TorchLibraryHandle library = nullptr;
  if (aoti_torch_library_init_def(kNamespace, kFile, __LINE__, &library) != AOTI_TORCH_SUCCESS)
    return failed("open the namespace", kNamespace);
  kept(library);
  for (const RegisteredOperator& row : registered_operators())
    if (aoti_torch_library_def(library, row.schema->text) != AOTI_TORCH_SUCCESS)
      return failed("define", row.schema->text);
  return true;
}

bool implement(const char* key, bool takes_tensors) {
  TorchLibraryHandle library = nullptr;
  if (aoti_torch_library_init_impl(kNamespace, key, kFile, __LINE__, &library) != AOTI_TORCH_SUCCESS)
    return failed("open the dispatch key", key);
  kept(library);
  for (const RegisteredOperator& row : registered_operators()) {
    if (row.takes_tensors != takes_tensors) continue;
    char name[128];
    std::snprintf(name, sizeof name, "%.*s", static_cast<int>(row.schema->name.size()), row.schema->name.data());
    if (torch_library_impl(library, name, row.kernel, TORCH_ABI_VERSION) != AOTI_TORCH_SUCCESS)
      return failed("implement", name);
  }
  return true;
}

bool table_is_complete() {
  for (const RegisteredOperator& row : registered_operators()) {
    if (!row.takes_tensors || find_operator(row.schema->name) != nullptr) continue;
    std::snprintf(registration.status, sizeof registration.status, "%s has a schema, but no operator behind it",
                  row.schema->text);
    return false;
  }
  return true;
}

bool register_all() {
  const std::uint64_t torch_version = aoti_torch_abi_version();
  if (torch_version < kOldestTorch) {
    std::snprintf(registration.status, sizeof registration.status, "expected torch 2.10 or newer; got torch %d.%d",
                  static_cast<int>(torch_version >> 56), static_cast<int>((torch_version >> 48) & 0xff));
    return false;
  }
  if (!codes_are_ours()) {
    std::snprintf(registration.status, sizeof registration.status,
                  "this torch numbers dtypes or devices in a way that the library does not know");
    return false;
  }
  return table_is_complete() && define() && implement("CPU", true) && implement("CUDA", true) &&
         implement("CompositeExplicitAutograd", false);
}

__attribute__((constructor)) void register_when_loaded() {
  if (register_all()) registration.status[0] = '\0';
}

}  // namespace

const char* registration_status() { return registration.status; }

}  // namespace evergemm::bindings
