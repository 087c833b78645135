# How this project's libraries are compiled.

# Warnings as errors, no path of the build machine in error texts, hidden symbols.
function(fullspectrum_options target)
  target_include_directories(${target} PRIVATE "${CMAKE_CURRENT_SOURCE_DIR}/csrc")
  target_compile_options(
    ${target}
    PRIVATE "$<$<COMPILE_LANGUAGE:CXX>:-Wall;-Wextra;-Wpedantic;-Werror;-fmacro-prefix-map=${CMAKE_CURRENT_SOURCE_DIR}/=>"
  )
  set_target_properties(
    ${target} PROPERTIES CXX_VISIBILITY_PRESET hidden VISIBILITY_INLINES_HIDDEN ON POSITION_INDEPENDENT_CODE ON
  )
  if(FULLSPECTRUM_SANITIZE)
    # -O1: the instrumented vector kernels take minutes to optimise further
    target_compile_options(
      ${target} PRIVATE "$<$<COMPILE_LANGUAGE:CXX>:-fsanitize=${FULLSPECTRUM_SANITIZE};-fno-omit-frame-pointer;-g;-O1>"
    )
    target_link_options(${target} PRIVATE -fsanitize=${FULLSPECTRUM_SANITIZE})
  endif()
endfunction()

# A library of torch operators, found beside the Python package at run time.
function(fullspectrum_library name)
  add_library(${name} MODULE ${ARGN})
  fullspectrum_options(${name})
  set_target_properties(
    ${name} PROPERTIES PREFIX "lib" SUFFIX ".so" INSTALL_RPATH "$ORIGIN/../torch/lib" BUILD_WITH_INSTALL_RPATH ON
  )
  target_link_libraries(${name} PRIVATE torch::stable Threads::Threads)
  install(TARGETS ${name} LIBRARY DESTINATION fullspectrum_ext)
endfunction()

# Compiles each source once for every instruction set this processor family has, with
# FULLSPECTRUM_ISA naming the namespace. Such a file includes no header with functions of external
# linkage: the linker keeps one copy of those, and it could be one that the running processor cannot
# execute. Headers for these files put everything in an unnamed namespace within FULLSPECTRUM_ISA.
function(fullspectrum_kernels target)
  fullspectrum_kernels_of(${target} baseline "" ${ARGN})
  if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
    fullspectrum_kernels_of(${target} avx2 "${FULLSPECTRUM_AVX2}" ${ARGN})
    fullspectrum_kernels_of(${target} avx512 "${FULLSPECTRUM_AVX512}" ${ARGN})
  endif()
endfunction()

# The same for AVX-512 with VNNI, which few kernels have a use for.
function(fullspectrum_vnni_kernels target)
  if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
    fullspectrum_kernels_of(${target} avx512_vnni "${FULLSPECTRUM_AVX512};-mavx512vnni" ${ARGN})
  endif()
endfunction()

set(FULLSPECTRUM_AVX2 -mavx2 -mfma -mf16c)
set(FULLSPECTRUM_AVX512 ${FULLSPECTRUM_AVX2} -mavx512f -mavx512bw -mavx512dq -mavx512vl -mprefer-vector-width=512)
function(fullspectrum_kernels_of target isa flags)
  if(NOT ARGN)
    return()
  endif()
  add_library(${target}_${isa} OBJECT ${ARGN})
  fullspectrum_options(${target}_${isa})
  target_compile_definitions(${target}_${isa} PRIVATE FULLSPECTRUM_ISA=${isa})
  target_compile_options(${target}_${isa} PRIVATE ${flags})
  if(NOT FULLSPECTRUM_SANITIZE)
    target_compile_options(${target}_${isa} PRIVATE -O3)
  endif()
  target_link_libraries(${target} PRIVATE ${target}_${isa})
endfunction()

# The CUDA sources, compiled by the host compiler against the block emulator.
function(fullspectrum_emulated_library name)
  set(CMAKE_CXX_FLAGS_RELEASE "-O1 -DNDEBUG")
  add_library(${name} MODULE ${ARGN} csrc/emulation/emulation.cpp)
  fullspectrum_options(${name})
  set(cuda_sources ${ARGN})
  list(FILTER cuda_sources INCLUDE REGEX "\\.cu$")
  set_source_files_properties(${cuda_sources} PROPERTIES LANGUAGE CXX COMPILE_OPTIONS "-x;c++")
  target_compile_definitions(${name} PRIVATE FULLSPECTRUM_EMULATION)
  target_compile_options(${name} PRIVATE -O1)
  set_target_properties(${name} PROPERTIES PREFIX "lib" SUFFIX ".so")
  target_link_libraries(${name} PRIVATE torch::stable)
endfunction()
