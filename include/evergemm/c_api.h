/* SPDX-License-Identifier: Apache-2.0 */
/* The torch library's one exported symbol: evergemm_c_api_v1, a constant table of C functions for whoever loads that library
   without linking it (Python through ctypes, tools). It asks, explains and registers; it runs no kernel. C++ programs use validate.h,
   plan.h and run.h instead. Plain C; the layouts below are frozen for v1, new functions come last. */
#ifndef EVERGEMM_C_API_H
#define EVERGEMM_C_API_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { EVERGEMM_MAX_RANK = 64, EVERGEMM_MAX_OUTPUTS = 3 };

/* Dtypes are torch's ScalarType codes; device types 0 cpu, 1 cuda, 2 other. */
typedef struct evergemm_tensor_v1 {
  const void* data; /* any address that is right relative to other tensors; never read */
  const int64_t* sizes;
  const int64_t* strides;
  int64_t storage_bytes; /* from data to the end of the storage; -1: unknown */
  int32_t rank;          /* -1: None */
  int32_t dtype;
  int32_t device_type;
  int32_t device_index;
  int32_t requires_grad;
  int32_t reserved; /* 0 */
} evergemm_tensor_v1;

/* One argument of an operator's schema. kind: 0 tensor, 1 int, 2 float, 3 bool, 4 ScalarType. */
typedef struct evergemm_argument_v1 {
  int32_t kind;
  int32_t reserved; /* 0 */
  int64_t integer;  /* int, bool, ScalarType */
  double real;      /* float */
  evergemm_tensor_v1 tensor;
} evergemm_argument_v1;

/* A result that the operator would allocate. */
typedef struct evergemm_output_v1 {
  int32_t dtype;
  int32_t device_type;
  int32_t device_index;
  int32_t rank;
  int64_t sizes[EVERGEMM_MAX_RANK];
  int64_t strides[EVERGEMM_MAX_RANK];
} evergemm_output_v1;

/* Where a function puts its text: at most capacity - 1 bytes and a NUL; length is what the whole text needs without it, so
   that a caller whose buffer was too small can come again. */
typedef struct evergemm_text_v1 {
  char* data;
  int64_t capacity;
  int64_t length;
} evergemm_text_v1;

/* Functions that return int32_t: 0 for yes; 1 for no, with the reason in `text`. */
typedef struct evergemm_c_api {
  uint64_t size; /* sizeof this struct in the library: what lies beyond it is not there */

  const char* (*version)(void); /* of the library, "0.1.0" */
  /* "" when all operators are registered with torch; otherwise why not. */
  const char* (*status)(void);

  /* The registered operators: schema, and whether it takes tensors (dispatch keys CPU and CUDA, otherwise
     CompositeExplicitAutograd). Null beyond the last. */
  int32_t (*operator_count)(void);
  const char* (*operator_schema)(int32_t index);
  int32_t (*operator_takes_tensors)(int32_t index);

  /* Would this operator ("scaled_mm", "scaled_mm.out", ...) take these arguments, in the order of its schema? On success the
     results that it would allocate are in outputs[0 .. *output_count). */
  int32_t (*validate)(const char* operator_name, const evergemm_argument_v1* arguments, int32_t argument_count,
                      evergemm_output_v1 outputs[EVERGEMM_MAX_OUTPUTS], int32_t* output_count, evergemm_text_v1* text);

  /* What would run, as JSON. architecture: "cpu", "cpu-avx2", "sm90a", ...; null: the one of the tensors. The text is the
     error where the result is 1. */
  int32_t (*explain)(const char* operator_name, const evergemm_argument_v1* arguments, int32_t argument_count,
                     const char* architecture, evergemm_text_v1* text);

  /* This machine and this binary as JSON: version, status, cpu, gpus, architectures with their rows. */
  int32_t (*facts)(evergemm_text_v1* text);

  /* The capability queries of the drop-in operators; capability = major * 10 + minor. */
  int32_t (*supports_fp8)(int64_t capability);
  int32_t (*supports_block_fp8)(int64_t capability);
  int32_t (*supports_grouped)(int64_t capability);

  /* Registers the named drop-in operators ("cutlass_scaled_mm", ...) also in the namespace _C, all of them or, where one
     cannot be, none. The caller makes sure that nobody else defines them there, now or later: torch ends a process that
     defines an operator twice. */
  int32_t (*register_dropins)(const char* const* names, int32_t count, evergemm_text_v1* text);
} evergemm_c_api;

__attribute__((visibility("default"))) extern const evergemm_c_api evergemm_c_api_v1;

#ifdef __cplusplus
}
#endif

#endif
