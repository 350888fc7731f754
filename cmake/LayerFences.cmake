# SPDX-License-Identifier: Apache-2.0
# A layer is a folder, a target, and the include path that it gets. src/ itself is on no include path: a layer sees
# include/ (through evergemm_api), its own folder, and single headers of another layer that are named here with SEES,
# each through a folder of links in the build tree. A header that is not named cannot be found.

# evergemm_layer(<name> SOURCES <file>... [SEES <folder/header.h>...])
# Target evergemm_<name>, made of the sources of the calling folder, e.g. evergemm_layer(cpu SEES plan/cpu.h plan/rules.h ...).
function(evergemm_layer name)
  cmake_parse_arguments(PARSE_ARGV 1 layer "" "" "SOURCES;SEES")
  if(NOT layer_SOURCES)
    file(WRITE "${CMAKE_CURRENT_BINARY_DIR}/empty.cpp" "")
    set(layer_SOURCES "${CMAKE_CURRENT_BINARY_DIR}/empty.cpp")
  endif()
  add_library(evergemm_${name} OBJECT ${layer_SOURCES})
  target_link_libraries(evergemm_${name} PUBLIC evergemm_api PRIVATE evergemm_build_flags)
  evergemm_fence(evergemm_${name} OWN ${name} SEES ${layer_SEES})
endfunction()

# evergemm_fence(<target> [OWN <folder of src>] [SEES <folder/header.h>...]): the include path of one target.
function(evergemm_fence target)
  cmake_parse_arguments(PARSE_ARGV 1 fence "" "OWN" "SEES")
  set(path "${CMAKE_BINARY_DIR}/fences/${target}")
  file(REMOVE_RECURSE "${path}")
  file(MAKE_DIRECTORY "${path}")
  if(fence_OWN)
    file(CREATE_LINK "${PROJECT_SOURCE_DIR}/src/${fence_OWN}" "${path}/${fence_OWN}" SYMBOLIC)
  endif()
  foreach(header IN LISTS fence_SEES)
    if(NOT EXISTS "${PROJECT_SOURCE_DIR}/src/${header}")
      evergemm_fail("${target} is to see src/${header}, which does not exist")
    endif()
    cmake_path(GET header PARENT_PATH folder)
    file(MAKE_DIRECTORY "${path}/${folder}")
    file(CREATE_LINK "${PROJECT_SOURCE_DIR}/src/${header}" "${path}/${header}" SYMBOLIC)
  endforeach()
  target_include_directories(${target} PRIVATE "${path}")
endfunction()
