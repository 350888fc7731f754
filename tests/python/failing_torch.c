/* SPDX-License-Identifier: Apache-2.0 */
/* Stands between the library and torch (LD_PRELOAD) and makes the n-th call of torch's C interface fail, as it would without
   memory. test_failures.py builds it and sets n. */
#include <dlfcn.h>
#include <stdint.h>

static long countdown = -1; /* calls until the one that fails; below 0: none does */
static long seen;           /* calls since the last arm */

void failing_torch_arm(long n) {
  countdown = n;
  seen = 0;
}
long failing_torch_seen(void) { return seen; }

/* torch is loaded after us and into a scope of its own, where RTLD_NEXT does not look. */
static void* torch_symbol(const char* name) {
  static void* torch;
  if (!torch) torch = dlopen("libtorch_cpu.so", RTLD_LAZY | RTLD_NOLOAD);
  return dlsym(torch, name);
}

static int fails(void) {
  ++seen;
  return countdown >= 0 && countdown-- == 0;
}

#define STANDS_IN(name, parameters, ...)                              \
  int32_t name parameters {                                           \
    static int32_t(*theirs) parameters;                               \
    if (!theirs) theirs = (int32_t(*) parameters)torch_symbol(#name); \
    return fails() ? 1 : theirs(__VA_ARGS__);                         \
  }

STANDS_IN(aoti_torch_get_dtype, (void* t, int32_t* r), t, r)
STANDS_IN(aoti_torch_get_device_type, (void* t, int32_t* r), t, r)
STANDS_IN(aoti_torch_get_dim, (void* t, int64_t* r), t, r)
STANDS_IN(aoti_torch_get_sizes, (void* t, int64_t** r), t, r)
STANDS_IN(aoti_torch_get_strides, (void* t, int64_t** r), t, r)
STANDS_IN(aoti_torch_get_storage_size, (void* t, int64_t* r), t, r)
STANDS_IN(aoti_torch_get_storage_offset, (void* t, int64_t* r), t, r)
STANDS_IN(torch_get_const_data_ptr, (void* t, const void** r), t, r)
STANDS_IN(torch_get_mutable_data_ptr, (void* t, void** r), t, r)
STANDS_IN(torch_get_num_threads, (uint32_t* r), r)
STANDS_IN(torch_parallel_for, (int64_t b, int64_t e, int64_t g, void* f, void* c), b, e, g, f, c)
STANDS_IN(aoti_torch_empty_strided,
          (int64_t n, const int64_t* s, const int64_t* d, int32_t t, int32_t y, int32_t i, void** r), n, s, d, t, y, i,
          r)
STANDS_IN(aoti_torch_library_init_def, (const char* n, const char* f, uint32_t l, void** r), n, f, l, r)
STANDS_IN(aoti_torch_library_init_fragment, (const char* n, const char* f, uint32_t l, void** r), n, f, l, r)
STANDS_IN(aoti_torch_library_init_impl, (const char* n, const char* k, const char* f, uint32_t l, void** r), n, k, f, l,
          r)
STANDS_IN(aoti_torch_library_def, (void* h, const char* s), h, s)
STANDS_IN(torch_library_impl, (void* h, const char* n, void* f, uint64_t v), h, n, f, v)
