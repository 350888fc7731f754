# SPDX-License-Identifier: Apache-2.0
# One translation unit for each row of a kernel table. The names come from the table itself, printed by a small program that
# is compiled while configuring, so that no list stands twice. Must not go here: rows, flags.

# evergemm_sm90_instances(<out>): <out> becomes the generated sources, with the wgmma wrappers beside them.
function(evergemm_sm90_instances out)
  set(tables ${PROJECT_SOURCE_DIR}/src/plan/sm90.h ${PROJECT_SOURCE_DIR}/src/plan/sm90_grouped.h
             ${PROJECT_SOURCE_DIR}/src/plan/tile_config.h ${PROJECT_SOURCE_DIR}/src/plan/rules.h)
  set(generator ${PROJECT_SOURCE_DIR}/src/cuda/sm90/generate_wgmma.py)
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${tables} ${generator})
  set(folder ${CMAKE_CURRENT_BINARY_DIR}/generated)
  file(MAKE_DIRECTORY ${folder})

  try_run(ran compiled
    SOURCES ${PROJECT_SOURCE_DIR}/src/cuda/sm90/print_rows.cpp
    CMAKE_FLAGS "-DINCLUDE_DIRECTORIES=${PROJECT_SOURCE_DIR}/include;${PROJECT_SOURCE_DIR}/src"
    CXX_STANDARD 20 CXX_STANDARD_REQUIRED ON NO_CACHE
    COMPILE_OUTPUT_VARIABLE compile_text
    RUN_OUTPUT_VARIABLE rows)
  if(NOT compiled OR NOT ran EQUAL 0)
    message(FATAL_ERROR "evergemm: expected the rows of src/plan/sm90*.h; got: ${compile_text}${rows}")
  endif()
  string(STRIP "${rows}" rows)
  string(REPLACE "\n" ";" rows "${rows}")  # "tile header table parameters function name" each

  find_package(Python 3.10 COMPONENTS Interpreter REQUIRED)
  execute_process(COMMAND ${Python_EXECUTABLE} ${generator} ${folder}/wgmma.cuh.new COMMAND_ERROR_IS_FATAL ANY)
  file(COPY_FILE ${folder}/wgmma.cuh.new ${folder}/wgmma.cuh ONLY_IF_DIFFERENT)

  set(sources "")
  foreach(row IN LISTS rows)
    string(REPLACE " " ";" row "${row}")
    list(GET row 0 tile)
    list(GET row 1 header)
    list(GET row 2 table)
    list(GET row 3 parameters)
    list(GET row 4 function)
    list(GET row 5 name)
    file(CONFIGURE OUTPUT ${folder}/${name}.cu @ONLY CONTENT
"// SPDX-License-Identifier: Apache-2.0
// Made by cmake/KernelInstances.cmake: the kernel of tile @tile@ of plan/@header@.
#include \"cuda/sm90/gemm.cuh\"
#include \"cuda/sm90/instances.h\"
#include \"plan/@header@\"

namespace {
using Kernel = evergemm::sm90::Gemm<evergemm::plan_tables::@table@[@tile@]>;
constexpr int kThreads = Kernel::kGeometry.threads;
}  // namespace

extern \"C\" __global__ void __launch_bounds__(kThreads, 1) @name@(const __grid_constant__ evergemm::sm90::@parameters@ p) {
  Kernel::run(p);
}

namespace evergemm::sm90 {
template <>
const void* @function@<@tile@>() {
  return reinterpret_cast<const void*>(&@name@);
}
}  // namespace evergemm::sm90
")
    list(APPEND sources ${folder}/${name}.cu)
  endforeach()
  list(LENGTH sources count)
  message(STATUS "evergemm: ${count} Hopper rows")
  set(${out} ${sources} PARENT_SCOPE)
endfunction()
