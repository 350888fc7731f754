# SPDX-License-Identifier: Apache-2.0
# Which GPU architectures each CUDA source is compiled for, and one translation unit for each row of the portable family. Rows
# and memory classes come from the table itself, printed by a small program that is compiled while configuring.
# Must not go here: rows, lists of architectures.

# evergemm_compile_for(<architectures> <source>...): machine code or PTX of exactly these, such as "80-real;90a-real;120-virtual".
function(evergemm_compile_for architectures)
  set(options "")
  foreach(architecture IN LISTS architectures)
    string(REGEX MATCH "^([0-9]+[a-z]?)-(real|virtual)$" matched "${architecture}")
    if(CMAKE_MATCH_2 STREQUAL "real")
      list(APPEND options "--generate-code=arch=compute_${CMAKE_MATCH_1},code=[sm_${CMAKE_MATCH_1}]")
    else()
      list(APPEND options "--generate-code=arch=compute_${CMAKE_MATCH_1},code=[compute_${CMAKE_MATCH_1}]")
    endif()
  endforeach()
  set_source_files_properties(${ARGN} PROPERTIES COMPILE_OPTIONS "${options}")
endfunction()

# evergemm_portable_table(<out>): the lines that print_rows.cpp prints.
function(evergemm_portable_table out)
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/src/plan/portable.h)
  try_run(ran compiled
    SOURCES ${PROJECT_SOURCE_DIR}/src/cuda/portable/print_rows.cpp
    CMAKE_FLAGS "-DINCLUDE_DIRECTORIES=${PROJECT_SOURCE_DIR}/include;${PROJECT_SOURCE_DIR}/src"
    CXX_STANDARD 20 CXX_STANDARD_REQUIRED ON NO_CACHE
    COMPILE_OUTPUT_VARIABLE compile_text
    RUN_OUTPUT_VARIABLE lines)
  if(NOT compiled OR NOT ran EQUAL 0)
    message(FATAL_ERROR "evergemm: expected the rows of src/plan/portable.h; got: ${compile_text}${lines}")
  endif()
  string(STRIP "${lines}" lines)
  string(REPLACE "\n" ";" lines "${lines}")
  set(${out} "${lines}" PARENT_SCOPE)
endfunction()

# evergemm_portable_instances(<out> <architectures> [SUFFIX <text>] [CLASS <number>]): <out> becomes the sources of the rows that
# these architectures have, each to be compiled for those that have it, and of the table of kernels (instances.h).
# With a suffix the kernels are called so, and the table too: a second build of the rows that can stand in one program with the
# first. With a class its rows are built whatever the architectures' class is.
function(evergemm_portable_instances out architectures)
  cmake_parse_arguments(PARSE_ARGV 2 instances "" "SUFFIX;CLASS" "")
  evergemm_portable_table(lines)
  set(folder ${CMAKE_CURRENT_BINARY_DIR}/portable${instances_SUFFIX})
  file(MAKE_DIRECTORY ${folder})

  foreach(memory RANGE 2)
    set(architectures_of_${memory} "")
  endforeach()
  foreach(line IN LISTS lines)
    if(line MATCHES "^architecture sm([0-9]+[a-z]?) ([0-9])$")
      set(name ${CMAKE_MATCH_1})
      set(memory ${CMAKE_MATCH_2})
      if(DEFINED instances_CLASS)
        set(memory ${instances_CLASS})
      endif()
      foreach(kind real virtual)
        if("${name}-${kind}" IN_LIST architectures)
          list(APPEND architectures_of_${memory} ${name}-${kind})
        endif()
      endforeach()
    endif()
  endforeach()

  set(names "")
  set(entries "")
  set(grouped_entries "")
  set(sum_entries "")
  set(declarations "")
  set(previous_memory 0)
  foreach(line IN LISTS lines)
    if(NOT line MATCHES "^row ([a-z0-9_]+) ([0-9]) ([0-9]+) ([01]) ([01])$")
      continue()
    endif()
    set(name ${CMAKE_MATCH_1}${instances_SUFFIX})
    set(grouped_name ${CMAKE_MATCH_1}_grouped${instances_SUFFIX})
    set(memory ${CMAKE_MATCH_2})
    set(row ${CMAKE_MATCH_3})
    set(has_grouped ${CMAKE_MATCH_4})
    set(may_split ${CMAKE_MATCH_5})
    set(sum_name ${CMAKE_MATCH_1}_sum${instances_SUFFIX})
    if(NOT memory EQUAL previous_memory)
      string(APPEND entries "    }}, {{\n")
      string(APPEND grouped_entries "    }}, {{\n")
      string(APPEND sum_entries "    }}, {{\n")
      set(previous_memory ${memory})
    endif()
    if(NOT architectures_of_${memory})
      string(APPEND entries "        nullptr,\n")
      string(APPEND grouped_entries "        nullptr,\n")
      string(APPEND sum_entries "        nullptr,\n")
      continue()
    endif()
    string(APPEND entries "        &address_of_${name},\n")
    set(grouped_kernel "")
    if(has_grouped)
      string(APPEND grouped_entries "        &address_of_${grouped_name},\n")
      string(CONFIGURE [[
extern "C" __global__ void __launch_bounds__(kThreads)
    @grouped_name@(const __grid_constant__ evergemm::portable::GroupedParameters p) {
  Kernel::run_grouped(p);
}

namespace evergemm::portable {
const void* address_of_@grouped_name@() { return reinterpret_cast<const void*>(&@grouped_name@); }
}  // namespace evergemm::portable
]] grouped_kernel @ONLY)
    else()
      string(APPEND grouped_entries "        nullptr,\n")
    endif()
    set(sum_kernel "")
    if(may_split)
      string(APPEND sum_entries "        &address_of_${sum_name},\n")
      string(CONFIGURE [[
extern "C" __global__ void __launch_bounds__(kThreads)
    @sum_name@(const __grid_constant__ evergemm::portable::Parameters p) {
  Kernel::run_sum(p);
}

namespace evergemm::portable {
const void* address_of_@sum_name@() { return reinterpret_cast<const void*>(&@sum_name@); }
}  // namespace evergemm::portable
]] sum_kernel @ONLY)
    else()
      string(APPEND sum_entries "        nullptr,\n")
    endif()
    if(NOT name IN_LIST names)  # two classes may have the same row
      list(APPEND names ${name})
      set(architectures_of_${name} "")
      string(APPEND declarations "const void* address_of_${name}();\n")
      if(has_grouped)
        string(APPEND declarations "const void* address_of_${grouped_name}();\n")
      endif()
      if(may_split)
        string(APPEND declarations "const void* address_of_${sum_name}();\n")
      endif()
    endif()
    list(APPEND architectures_of_${name} ${architectures_of_${memory}})
    file(CONFIGURE OUTPUT ${folder}/${name}.cu @ONLY CONTENT
"// SPDX-License-Identifier: Apache-2.0
// Made by cmake/PortableInstances.cmake: the kernel of a row of plan/portable.h.
#include \"cuda/portable/gemm.cuh\"

namespace {
using Kernel = evergemm::portable::Gemm<evergemm::plan_tables::portable_rows_of(
    static_cast<evergemm::plan_tables::MemoryClass>(@memory@))[@row@]>;
constexpr int kThreads = Kernel::kThreads;
}  // namespace

extern \"C\" __global__ void __launch_bounds__(kThreads) @name@(const __grid_constant__ evergemm::portable::Parameters p) {
  Kernel::run(p);
}

namespace evergemm::portable {
const void* address_of_@name@() { return reinterpret_cast<const void*>(&@name@); }
}  // namespace evergemm::portable
@grouped_kernel@@sum_kernel@")
  endforeach()

  file(CONFIGURE OUTPUT ${folder}/kernels${instances_SUFFIX}.cpp @ONLY CONTENT
"// SPDX-License-Identifier: Apache-2.0
// Made by cmake/PortableInstances.cmake: the kernels of the portable family that are in this binary.
#include \"cuda/portable/instances.h\"

namespace evergemm::portable {

@declarations@
extern const Kernels kKernels@instances_SUFFIX@;
const Kernels kKernels@instances_SUFFIX@ = {{{{
@entries@    }}}};

extern const Kernels kGroupedKernels@instances_SUFFIX@;
const Kernels kGroupedKernels@instances_SUFFIX@ = {{{{
@grouped_entries@    }}}};

extern const Kernels kSumKernels@instances_SUFFIX@;
const Kernels kSumKernels@instances_SUFFIX@ = {{{{
@sum_entries@    }}}};

}  // namespace evergemm::portable
")

  set(sources ${folder}/kernels${instances_SUFFIX}.cpp)
  foreach(name IN LISTS names)
    evergemm_compile_for("${architectures_of_${name}}" ${folder}/${name}.cu)
    list(APPEND sources ${folder}/${name}.cu)
  endforeach()
  list(LENGTH names count)
  message(STATUS "evergemm: ${count} portable rows${instances_SUFFIX}")
  set(${out} ${sources} PARENT_SCOPE)
endfunction()
