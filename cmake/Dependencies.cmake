# SPDX-License-Identifier: Apache-2.0
# What the build takes from the machine: a compiler, nvcc, torch's headers. Each is looked for once, and whatever is missing
# or too old is one line that names the fix. Must not go here: anything that downloads.

# Indented text is printed as it stands; otherwise CMake would break the one line into several.
function(evergemm_fail)
  set(text "")
  math(EXPR last "${ARGC} - 1")
  foreach(index RANGE ${last})  # by index: as a list the text would lose its semicolons
    string(APPEND text "${ARGV${index}}")
  endforeach()
  message(FATAL_ERROR "  evergemm: ${text}")
endfunction()

function(evergemm_check_compiler)
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 12)
    evergemm_fail("expected g++ >= 12; got ${CMAKE_CXX_COMPILER_VERSION} (${CMAKE_CXX_COMPILER}); "
                  "fix: apt-get install g++-12, then set CC=gcc-12 CXX=g++-12.")
  endif()
  if(NOT CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64)$" OR NOT CMAKE_SYSTEM_NAME STREQUAL "Linux")
    evergemm_fail("expected Linux on x86_64; got ${CMAKE_SYSTEM_NAME} on ${CMAKE_SYSTEM_PROCESSOR}; "
                  "fix: build on such a machine.")
  endif()
endfunction()

# ---- GPU architectures -----------------------------------------------------------------------------------------------
# Architectures that src/cuda has kernels for: sm90a has a family of its own beside the portable one.
set(EVERGEMM_KNOWN_ARCHITECTURES sm75 sm80 sm86 sm89 sm90a sm100 sm103 sm110 sm120 sm121)
# What `all` adds as PTX, which the driver translates for GPUs that came after this list.
set(EVERGEMM_PTX_ARCHITECTURE 120)
# The oldest compiler that these kernels are built with; its runtime is linked statically and asks for driver >= 580.
set(EVERGEMM_MINIMUM_NVCC 13.0)

# Sets EVERGEMM_CUDA_ARCHITECTURES (a list such as "90a-real") for the caller, and enables CUDA where it is not empty.
# EVERGEMM_ARCHS that the user has set is an order: what it lacks is an error. Unset, it is `native`, and a GPU that
# cannot be served gives a warning and a CPU build.
macro(evergemm_select_architectures)
  evergemm_resolve_architectures(EVERGEMM_CUDA_ARCHITECTURES evergemm_nvcc)
  if(EVERGEMM_CUDA_ARCHITECTURES)
    set(CMAKE_CUDA_COMPILER "${evergemm_nvcc}" CACHE FILEPATH "CUDA compiler")
    set(CMAKE_CUDA_ARCHITECTURES ${EVERGEMM_CUDA_ARCHITECTURES})
    set(CMAKE_CUDA_EXTENSIONS OFF)
    enable_language(CUDA)
    set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
    # The static runtime by its file: find_package(CUDAToolkit) would bring in far more than is linked.
    find_library(EVERGEMM_CUDART cudart_static HINTS ${CMAKE_CUDA_IMPLICIT_LINK_DIRECTORIES})
    if(NOT EVERGEMM_CUDART)
      evergemm_fail("expected libcudart_static.a beside ${evergemm_nvcc}; got none; "
                    "fix: install the CUDA toolkit's cudart development package, or set EVERGEMM_ARCHS=none.")
    endif()
    add_library(evergemm_cudart INTERFACE)
    target_link_libraries(evergemm_cudart INTERFACE "${EVERGEMM_CUDART}" ${CMAKE_DL_LIBS} rt)
  endif()
endmacro()

function(evergemm_resolve_architectures out_architectures out_nvcc)
  set(${out_architectures} "" PARENT_SCOPE)
  string(REPLACE "," ";" wanted "${EVERGEMM_ARCHS}")
  set(ordered TRUE)
  if(wanted STREQUAL "")
    set(ordered FALSE)
    set(wanted native)
  endif()
  if(wanted STREQUAL "none")
    message(STATUS "evergemm: GPU architectures: none")
    return()
  endif()
  list(JOIN EVERGEMM_KNOWN_ARCHITECTURES ", " known)

  if(wanted STREQUAL "native")
    evergemm_visible_gpus(visible)
    set(wanted "")
    foreach(gpu IN LISTS visible)
      if("${gpu}" IN_LIST EVERGEMM_KNOWN_ARCHITECTURES)
        list(APPEND wanted ${gpu})
      else()
        message(STATUS "evergemm: a visible GPU is ${gpu}, which has no kernels here (there are: ${known}); not built for")
      endif()
    endforeach()
    if(NOT wanted)
      message(STATUS "evergemm: GPU architectures: none (native)")
      return()
    endif()
  elseif(wanted STREQUAL "all")
    set(wanted ${EVERGEMM_KNOWN_ARCHITECTURES})
  else()
    foreach(architecture IN LISTS wanted)
      if(NOT architecture IN_LIST EVERGEMM_KNOWN_ARCHITECTURES)
        evergemm_fail("EVERGEMM_ARCHS: expected native, none, all or a list of ${known}; "
                      "got ${architecture}; fix: leave it out.")
      endif()
    endforeach()
  endif()
  list(REMOVE_DUPLICATES wanted)

  set(problem "")
  find_program(EVERGEMM_NVCC nvcc HINTS ENV CUDA_HOME ENV CUDA_PATH PATHS /usr/local/cuda PATH_SUFFIXES bin)
  if(DEFINED ENV{CUDACXX})
    set(EVERGEMM_NVCC "$ENV{CUDACXX}")
  endif()
  if(CMAKE_CUDA_COMPILER)
    set(EVERGEMM_NVCC "${CMAKE_CUDA_COMPILER}")
  endif()
  if(NOT EVERGEMM_NVCC)
    set(problem "expected nvcc >= ${EVERGEMM_MINIMUM_NVCC} for ${wanted}; got none; fix: install the CUDA ${EVERGEMM_MINIMUM_NVCC} toolkit (or set CUDACXX to its nvcc)")
  else()
    execute_process(COMMAND "${EVERGEMM_NVCC}" --version OUTPUT_VARIABLE text ERROR_QUIET RESULT_VARIABLE code)
    string(REGEX MATCH "release ([0-9]+\\.[0-9]+)" matched "${text}")
    set(version "${CMAKE_MATCH_1}")
    if(NOT code EQUAL 0 OR NOT version)
      set(problem "expected nvcc >= ${EVERGEMM_MINIMUM_NVCC}; got ${EVERGEMM_NVCC}, which does not run; fix: set CUDACXX to a working nvcc")
    elseif(version VERSION_LESS EVERGEMM_MINIMUM_NVCC)
      set(problem "expected nvcc >= ${EVERGEMM_MINIMUM_NVCC}; got ${version} (${EVERGEMM_NVCC}); fix: install the CUDA ${EVERGEMM_MINIMUM_NVCC} toolkit (or set CUDACXX to its nvcc)")
    endif()
  endif()
  if(problem)
    if(ordered)
      evergemm_fail("EVERGEMM_ARCHS=${EVERGEMM_ARCHS}: ${problem}, or set EVERGEMM_ARCHS=none.")
    endif()
    message(WARNING "  evergemm: building for the CPU only: ${problem}.")
    return()
  endif()
  message(STATUS "evergemm: GPU architectures: ${wanted} (nvcc ${version})")
  list(TRANSFORM wanted REPLACE "^sm(.+)$" "\\1-real")
  if(EVERGEMM_ARCHS STREQUAL "all")
    list(APPEND wanted ${EVERGEMM_PTX_ARCHITECTURE}-virtual)
  endif()
  set(${out_architectures} "${wanted}" PARENT_SCOPE)
  set(${out_nvcc} "${EVERGEMM_NVCC}" PARENT_SCOPE)
endfunction()

# The visible GPUs as sm90a, sm80, ... from the driver's own tool, so that a build needs no CUDA program to ask.
function(evergemm_visible_gpus out)
  set(${out} "" PARENT_SCOPE)
  find_program(EVERGEMM_NVIDIA_SMI nvidia-smi)
  if(NOT EVERGEMM_NVIDIA_SMI)
    return()
  endif()
  execute_process(COMMAND "${EVERGEMM_NVIDIA_SMI}" --query-gpu=compute_cap --format=csv,noheader
                  OUTPUT_VARIABLE text ERROR_QUIET RESULT_VARIABLE code)
  if(NOT code EQUAL 0)
    return()
  endif()
  string(REGEX MATCHALL "[0-9]+\\.[0-9]+" capabilities "${text}")
  set(gpus "")
  foreach(capability IN LISTS capabilities)
    string(REPLACE "." "" number "${capability}")
    if(number STREQUAL "90")
      set(number "90a")  # the Hopper kernels use instructions that only sm_90a has
    endif()
    list(APPEND gpus sm${number})
  endforeach()
  list(REMOVE_DUPLICATES gpus)
  set(${out} "${gpus}" PARENT_SCOPE)
endfunction()

# ---- torch -------------------------------------------------------------------------------------------------------------
# Sets EVERGEMM_TORCH_INCLUDE for the caller: the given folder, or that of the installed torch, found without importing it
# (a torch that does not import, or takes seconds to, still has its headers).
macro(evergemm_find_torch_headers)
  if(NOT EVERGEMM_TORCH_INCLUDE)
    find_package(Python 3.10 COMPONENTS Interpreter)
    if(NOT Python_Interpreter_FOUND)
      evergemm_fail("expected python3 >= 3.10; got none; fix: apt-get install python3 python3-venv.")
    endif()
    execute_process(
      COMMAND "${Python_EXECUTABLE}" -c
        "import importlib.util as u, os; s = u.find_spec('torch'); print(os.path.join(list(s.submodule_search_locations)[0], 'include') if s else '')"
      OUTPUT_VARIABLE EVERGEMM_TORCH_INCLUDE OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  endif()
  if(NOT EXISTS "${EVERGEMM_TORCH_INCLUDE}/torch/csrc/stable/library.h")
    evergemm_fail("expected torch's stable headers; got none in '${EVERGEMM_TORCH_INCLUDE}'; fix: pip install "
                  "'torch>=2.10' for ${Python_EXECUTABLE}, or -DEVERGEMM_TORCH_INCLUDE=FOLDER, or "
                  "-DEVERGEMM_BUILD_TORCH=OFF for the C++ library alone.")
  endif()
  file(STRINGS "${EVERGEMM_TORCH_INCLUDE}/torch/headeronly/version.h" evergemm_torch_version_lines
       REGEX "define TORCH_VERSION_(MAJOR|MINOR) ")
  string(REGEX MATCHALL "[0-9]+" evergemm_torch_version "${evergemm_torch_version_lines}")
  list(JOIN evergemm_torch_version "." evergemm_torch_version)
  if(evergemm_torch_version VERSION_LESS 2.10)
    evergemm_fail("expected headers of torch >= 2.10; got ${evergemm_torch_version} in "
                  "${EVERGEMM_TORCH_INCLUDE}; fix: pip install --upgrade 'torch>=2.10'.")
  endif()
  message(STATUS "evergemm: stable headers of torch ${evergemm_torch_version}")
endmacro()

# Targets evergemm_stub_torch and evergemm_stub_torch_cpu: libraries with torch's names that export exactly the shims of the
# oldest torch we run on. Linked with -z defs, a newer shim is a link error, and no torch library is needed to link.
function(evergemm_add_torch_stubs)
  set(folder "${CMAKE_BINARY_DIR}/torch_stubs")
  file(STRINGS "${PROJECT_SOURCE_DIR}/cmake/torch_2_10_shims.txt" shims REGEX "^[a-z]")
  list(TRANSFORM shims REPLACE "(.+)" "void \\1(void) {}")
  list(JOIN shims "\n" shims)
  file(CONFIGURE OUTPUT "${folder}/torch_cpu.c" CONTENT "${shims}\n" @ONLY)
  file(CONFIGURE OUTPUT "${folder}/torch.c" CONTENT "void evergemm_torch_stub(void) {}\n" @ONLY)
  foreach(library torch torch_cpu)
    add_library(evergemm_stub_${library} SHARED "${folder}/${library}.c")
    set_target_properties(evergemm_stub_${library} PROPERTIES
      OUTPUT_NAME ${library} C_VISIBILITY_PRESET default LIBRARY_OUTPUT_DIRECTORY "${folder}")
  endforeach()
endfunction()
