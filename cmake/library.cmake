# The targets moenn (shared) and moenn_static, both from the same object files.
file(GLOB_RECURSE sources CONFIGURE_DEPENDS
  ${PROJECT_SOURCE_DIR}/lib/*.c ${PROJECT_SOURCE_DIR}/cpu/*.c)
file(GLOB vec_sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/cpu/vec/*.c)
list(REMOVE_ITEM sources ${vec_sources})

# One object library, with the include paths of the core and of the CPU backend.
set(packages PkgConfig::JANSSON PkgConfig::PCRE2 PkgConfig::UTF8PROC)
function(moenn_objects name)
  add_library(${name} OBJECT ${ARGN})
  target_include_directories(${name} PRIVATE
    ${PROJECT_SOURCE_DIR}/include ${PROJECT_SOURCE_DIR}/lib ${PROJECT_SOURCE_DIR}/cpu)
  target_compile_options(${name} PRIVATE -ffunction-sections -fdata-sections)
  target_link_libraries(${name} PRIVATE Threads::Threads ${packages})
endfunction()

moenn_objects(moenn_core ${sources})
set(objects $<TARGET_OBJECTS:moenn_core>)

# cpu/vec/ is written once for any vector width and compiled for each instruction set; the backend
# chooses between them at run time.
if(MOENN_VEC AND CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|amd64|AMD64)$" AND
   CMAKE_SIZEOF_VOID_P EQUAL 8)
  # One file has an instruction that not every processor with AVX-512 has, and those without never.
  set(bf16_sources ${PROJECT_SOURCE_DIR}/cpu/vec/gemm_bf16.c)
  list(REMOVE_ITEM vec_sources ${bf16_sources})
  moenn_objects(moenn_avx2 ${vec_sources})
  target_compile_options(moenn_avx2 PRIVATE -mavx2 -mfma -mf16c)
  target_compile_definitions(moenn_avx2 PRIVATE VEC_ISA=avx2 VEC_AVX2=1)

  set(avx512 -mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mf16c -mprefer-vector-width=512)
  moenn_objects(moenn_avx512 ${vec_sources})
  target_compile_options(moenn_avx512 PRIVATE ${avx512})
  moenn_objects(moenn_avx512bf16 ${bf16_sources})
  target_compile_options(moenn_avx512bf16 PRIVATE ${avx512} -mavx512bf16)
  foreach(target moenn_avx512 moenn_avx512bf16)
    target_compile_definitions(${target} PRIVATE VEC_ISA=avx512 VEC_AVX512=1)
    list(APPEND objects $<TARGET_OBJECTS:${target}>)
  endforeach()

  list(APPEND objects $<TARGET_OBJECTS:moenn_avx2>)
else()
  target_compile_definitions(moenn_core PRIVATE MOENN_NO_VEC)
endif()

add_library(moenn SHARED ${objects})
set_target_properties(moenn PROPERTIES
  VERSION ${PROJECT_VERSION} SOVERSION ${NN_ABI_VERSION}
  LINK_DEPENDS ${PROJECT_SOURCE_DIR}/lib/moenn.map)
target_link_options(moenn PRIVATE
  LINKER:--version-script=${PROJECT_SOURCE_DIR}/lib/moenn.map
  LINKER:--gc-sections,--as-needed,-z,relro,-z,now)
if(NOT MOENN_SANITIZE) # clang keeps the sanitizers' own symbols in the program, not in the library
  target_link_options(moenn PRIVATE LINKER:--no-undefined)
endif()
target_link_libraries(moenn PRIVATE ${packages} Threads::Threads m ${CMAKE_DL_LIBS})

add_library(moenn_static STATIC ${objects})
set_target_properties(moenn_static PROPERTIES OUTPUT_NAME moenn)
target_link_libraries(moenn_static PRIVATE ${packages} Threads::Threads m ${CMAKE_DL_LIBS})

foreach(target moenn moenn_static)
  target_include_directories(${target} PUBLIC
    $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/include>
    $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>)
  add_library(moenn::${target} ALIAS ${target})
endforeach()
