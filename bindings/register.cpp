// SPDX-License-Identifier: Apache-2.0
// Registers the operators when the library is loaded, also for C++ programs that have no Python. Every return code is
// checked; after a failure everything is taken back and the reason is kept (registration_status). Nothing here throws or
// terminates: torch's own static registrations end the process on a bad schema and crash on a second copy of a library.
#include "register.h"

#include <cstdio>
#include <cstring>
#include <span>

#include "compat.h"
#include "schema.h"

namespace evergemm::bindings {

namespace {

constexpr const char* kNamespace = "evergemm";
constexpr const char* kDropinNamespace = "_C";
constexpr const char* kFile = "evergemm/bindings/register.cpp";  // shown by torch where a name is taken twice

enum class Kind : std::uint8_t { definitions, fragment };

// One namespace's registrations. Undone by destroying torch's handles; otherwise they live as long as the process (the
// library is linked with -z nodelete).
class Registration {
 public:
  bool ok() const { return status_[0] == '\0'; }
  const char* status() const { return status_; }

  void open(const char* name, Kind kind) {
    namespace_ = name;
    status_[0] = '\0';
    TorchLibraryHandle library = nullptr;
    const AOTITorchError code = kind == Kind::definitions
                                    ? aoti_torch_library_init_def(namespace_, kFile, __LINE__, &library)
                                    : aoti_torch_library_init_fragment(namespace_, kFile, __LINE__, &library);
    if (code != AOTI_TORCH_SUCCESS) return refuse("open the namespace", namespace_);
    libraries_[count_++] = library;
  }

  void define(const RegisteredOperator& row) {
    if (ok() && aoti_torch_library_def(libraries_[0], row.schema->text) != AOTI_TORCH_SUCCESS)
      refuse("define", row.schema->text);
  }

  // Kernels for one dispatch key, of those of `rows` that `selects`.
  template <class Selects>
  void implement(const char* key, std::span<const RegisteredOperator> rows, Selects selects) {
    if (!ok()) return;
    TorchLibraryHandle library = nullptr;
    if (aoti_torch_library_init_impl(namespace_, key, kFile, __LINE__, &library) != AOTI_TORCH_SUCCESS)
      return refuse("open the dispatch key", key);
    libraries_[count_++] = library;
    for (const RegisteredOperator& row : rows) {
      if (!ok() || !selects(row)) continue;
      char name[128];
      std::snprintf(name, sizeof name, "%.*s", static_cast<int>(row.schema->name.size()), row.schema->name.data());
      if (torch_library_impl(library, name, row.kernel, TORCH_ABI_VERSION) != AOTI_TORCH_SUCCESS)
        refuse("implement", name);
    }
  }

  void fail(const char* text) {
    std::snprintf(status_, sizeof status_, "%s", text);
    undo();
  }

 private:
  void refuse(const char* doing, const char* with) {
    std::snprintf(status_, sizeof status_, "torch refused to %s %s", doing, with);
    try {
      const std::string text = last_torch_error();
      const std::size_t used = std::strlen(status_);
      if (!text.empty()) std::snprintf(status_ + used, sizeof status_ - used, ": %s", text.c_str());
    } catch (...) {  // no memory for torch's text: ours stands
    }
    undo();
  }

  void undo() {
    while (count_ > 0) aoti_torch_delete_library_object(libraries_[--count_]);
  }

  static constexpr std::int32_t kMaxLibraries = 4;  // the definitions and three dispatch keys
  const char* namespace_ = "";
  TorchLibraryHandle libraries_[kMaxLibraries] = {};
  std::int32_t count_ = 0;
  char status_[1024] = "registration has not run";
};

constinit Registration own;  // ready before any constructor runs

bool takes_tensors(const RegisteredOperator& row) { return row.takes_tensors; }
bool takes_none(const RegisteredOperator& row) { return !row.takes_tensors; }

void register_own() {
  char text[256];
  const std::uint64_t torch_version = aoti_torch_abi_version();
  if (torch_version < kOldestTorch) {
    std::snprintf(text, sizeof text, "expected torch 2.10 or newer; got torch %d.%d",
                  static_cast<int>(torch_version >> 56), static_cast<int>((torch_version >> 48) & 0xff));
    return own.fail(text);
  }
  if (!codes_are_ours())
    return own.fail("this torch numbers dtypes or devices in a way that the library does not know");
  for (const RegisteredOperator& row : registered_operators()) {
    if (!row.takes_tensors || find_operator(row.schema->name) != nullptr) continue;
    std::snprintf(text, sizeof text, "%s has a schema, but no operator behind it", row.schema->text);
    return own.fail(text);
  }
  own.open(kNamespace, Kind::definitions);
  for (const RegisteredOperator& row : registered_operators()) own.define(row);
  own.implement("CPU", registered_operators(), takes_tensors);
  own.implement("CUDA", registered_operators(), takes_tensors);
  own.implement("CompositeExplicitAutograd", registered_operators(), takes_none);
}

__attribute__((constructor)) void register_when_loaded() { register_own(); }

bool contains(const char* const* names, std::int32_t count, std::string_view name) {
  for (std::int32_t i = 0; i < count; ++i)
    if (name == names[i]) return true;
  return false;
}

}  // namespace

const char* registration_status() { return own.status(); }

Status register_dropins(const char* const* names, std::int32_t count) {
  Registration dropins;
  dropins.open(kDropinNamespace, Kind::fragment);
  std::int32_t found = 0;
  for (const RegisteredOperator& row : registered_operators()) {
    if (!contains(names, count, row.schema->name)) continue;
    ++found;
    dropins.define(row);
  }
  if (found != count) dropins.fail("expected names of operators without overloads; got another");
  const auto wanted = [&](const RegisteredOperator& row) { return contains(names, count, row.schema->name); };
  const auto wanted_tensors = [&](const RegisteredOperator& row) { return row.takes_tensors && wanted(row); };
  const auto wanted_queries = [&](const RegisteredOperator& row) { return !row.takes_tensors && wanted(row); };
  dropins.implement("CPU", registered_operators(), wanted_tensors);
  dropins.implement("CUDA", registered_operators(), wanted_tensors);
  dropins.implement("CompositeExplicitAutograd", registered_operators(), wanted_queries);
  return dropins.ok() ? Status() : Status(dropins.status());
}

}  // namespace evergemm::bindings
