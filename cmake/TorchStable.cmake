# Imported target torch::stable: torch's headers and libtorch_cpu, nothing else.
# find_package(Torch) is avoided: with a CUDA wheel it insists on a matching CUDA toolkit.
# In pip's isolated build torch is not importable, yet lies in the interpreter's site-packages.
set(_find_torch "
import importlib.util, pathlib, sysconfig
spec = importlib.util.find_spec('torch')
print(pathlib.Path(spec.origin).parent if spec else pathlib.Path(sysconfig.get_path('purelib'), 'torch'))
")
execute_process(
  COMMAND "${Python_EXECUTABLE}" -c "${_find_torch}"
  OUTPUT_VARIABLE TORCH_ROOT
  OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY
)
if(NOT EXISTS "${TORCH_ROOT}/include/torch/csrc/stable/library.h")
  message(FATAL_ERROR "No torch >= 2.10 beside ${Python_EXECUTABLE}: install one, or let pip build in isolation")
endif()
find_library(TORCH_CPU_LIBRARY torch_cpu PATHS "${TORCH_ROOT}/lib" NO_DEFAULT_PATH NO_CACHE REQUIRED)
message(STATUS "torch: ${TORCH_ROOT}")

add_library(torch_stable INTERFACE)
add_library(torch::stable ALIAS torch_stable)
target_include_directories(torch_stable SYSTEM INTERFACE "${TORCH_ROOT}/include")
target_compile_definitions(torch_stable INTERFACE TORCH_TARGET_VERSION=0x020a000000000000) # 2.10
target_link_libraries(torch_stable INTERFACE "${TORCH_CPU_LIBRARY}")
