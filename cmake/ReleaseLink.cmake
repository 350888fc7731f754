# SPDX-License-Identifier: Apache-2.0
# Links a shared library for glibc 2.28 (manylinux_2_28) on a newer machine: the ziglang package carries the older glibc's
# link stubs. Used for release wheels only (tools/release_wheel.py).

# evergemm_release_link(<target>)
function(evergemm_release_link target)
  find_package(Python 3.10 COMPONENTS Interpreter REQUIRED)
  execute_process(COMMAND "${Python_EXECUTABLE}" -m ziglang version OUTPUT_QUIET ERROR_QUIET RESULT_VARIABLE code)
  if(NOT code EQUAL 0)
    evergemm_fail("EVERGEMM_ZIG_LINK=ON: expected the ziglang package for ${Python_EXECUTABLE}; got none; "
                  "fix: make release-wheel, which installs it.")
  endif()
  # gcc's own libstdc++ and libgcc_s, not zig's libc++: exceptions cross into torch.
  foreach(name libstdc++.so libgcc_s.so.1)
    execute_process(COMMAND ${CMAKE_CXX_COMPILER} -print-file-name=${name}
                    OUTPUT_VARIABLE ${name} OUTPUT_STRIP_TRAILING_WHITESPACE)
  endforeach()
  set(CMAKE_CXX_CREATE_SHARED_MODULE
    "\"${Python_EXECUTABLE}\" -m ziglang cc -target x86_64-linux-gnu.2.28 -shared -o <TARGET> <OBJECTS> <LINK_FLAGS> <LINK_LIBRARIES> \"${libstdc++.so}\" \"${libgcc_s.so.1}\" -s"
    PARENT_SCOPE)
  target_sources(${target} PRIVATE "${PROJECT_SOURCE_DIR}/cmake/older_libstdcxx.cpp")
endfunction()
