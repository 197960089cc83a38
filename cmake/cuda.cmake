# libmoenn_cuda.so from cuda/: the backend that libmoenn opens when a "cuda:N" device is asked for.
# It has cudart inside and needs cuBLASLt and a driver where it runs; libmoenn itself needs none of
# them.
set(MOENN_CUDA AUTO CACHE STRING
  "Build the CUDA backend: AUTO (where nvcc and cuBLASLt are), ON or OFF")
set_property(CACHE MOENN_CUDA PROPERTY STRINGS AUTO ON OFF)
set(MOENN_CUDA_ARCHITECTURES "80-real;86-real;89-real;90a-real;90-virtual" CACHE STRING
  "GPU architectures of the CUDA backend; 90a: Hopper's own instructions; virtual: PTX for newer")
set(MOENN_CUBLAS "" CACHE PATH
  "Folder of cuBLASLt's include/ and lib/, where it is not the toolkit's")

set(cuda_missing)
if(MOENN_CUDA)
  include(CheckLanguage)
  set(CMAKE_CUDA_ARCHITECTURES ${MOENN_CUDA_ARCHITECTURES})
  check_language(CUDA)
  if(NOT CMAKE_CUDA_COMPILER)
    set(cuda_missing "nvcc was not found")
  else()
    enable_language(CUDA)
    if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 12.5)
      set(cuda_missing "nvcc ${CMAKE_CUDA_COMPILER_VERSION} is older than 12.5")
    endif()
    set(cuda_roots ${MOENN_CUBLAS} ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES}/..)
    find_path(CUBLASLT_INCLUDE cublasLt.h HINTS ${cuda_roots} PATH_SUFFIXES include)
    find_library(CUBLASLT_LIBRARY NAMES cublasLt libcublasLt.so.13 libcublasLt.so.12
      HINTS ${cuda_roots} PATH_SUFFIXES lib64 lib)
    if(NOT CUBLASLT_INCLUDE OR NOT CUBLASLT_LIBRARY)
      set(cuda_missing "cuBLASLt was not found (MOENN_CUBLAS names its folder)")
    endif()
  endif()
  if(cuda_missing AND MOENN_CUDA STREQUAL "AUTO")
    message(STATUS "CUDA backend: left out, for ${cuda_missing}")
  elseif(cuda_missing)
    message(FATAL_ERROR "MOENN_CUDA is ${MOENN_CUDA}, but ${cuda_missing}")
  endif()
else()
  set(cuda_missing "MOENN_CUDA is OFF")
endif()

if(NOT cuda_missing)
  message(STATUS
    "CUDA backend: nvcc ${CMAKE_CUDA_COMPILER_VERSION} for ${MOENN_CUDA_ARCHITECTURES}")
  set(CMAKE_CUDA_STANDARD 17)
  set(CMAKE_CUDA_STANDARD_REQUIRED ON)
  set(CMAKE_CUDA_VISIBILITY_PRESET hidden)
  file(GLOB_RECURSE cuda_sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/cuda/*.cu)
  add_library(moenn_cuda MODULE ${cuda_sources})
  target_include_directories(moenn_cuda PRIVATE ${PROJECT_SOURCE_DIR}/include
    ${PROJECT_SOURCE_DIR}/lib ${PROJECT_SOURCE_DIR}/cuda)
  target_include_directories(moenn_cuda SYSTEM PRIVATE ${CUBLASLT_INCLUDE})
  # The resource report (registers, spills) stays in the build's log.
  set(cuda_options -Xptxas=-v --threads=2
    -Xcompiler=-Wall,-Wextra,-fno-exceptions,-fno-rtti,-fno-threadsafe-statics)
  if(MOENN_WERROR)
    list(APPEND cuda_options -Werror=all-warnings -Xcompiler=-Werror)
  endif()
  set_property(TARGET moenn_cuda PROPERTY COMPILE_OPTIONS ${cuda_options})
  target_link_libraries(moenn_cuda PRIVATE ${CUBLASLT_LIBRARY})
  target_link_options(moenn_cuda PRIVATE
    LINKER:--as-needed,-z,relro,-z,now,--no-undefined -static-libgcc)
  cmake_path(GET CUBLASLT_LIBRARY PARENT_PATH cublas_folder)
  set_target_properties(moenn_cuda PROPERTIES
    PREFIX lib LIBRARY_OUTPUT_DIRECTORY $<TARGET_FILE_DIR:moenn>
    BUILD_RPATH ${cublas_folder} INSTALL_RPATH "\$ORIGIN")
  install(TARGETS moenn_cuda LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
endif()
