# prunefuse_isa_kernels(TARGET FLAG...): links into TARGET everything under cpu/kernels/, built once for every
# instruction-set level, in the namespace of that level's name, with that level's flags and FLAG....
function(prunefuse_isa_kernels target)
  file(GLOB sources CONFIGURE_DEPENDS ${CMAKE_CURRENT_FUNCTION_LIST_DIR}/../csrc/cpu/kernels/*.cpp)
  # a x - a x must be 0, which a fused multiply-add would not give.
  set_source_files_properties(${CMAKE_CURRENT_FUNCTION_LIST_DIR}/../csrc/cpu/kernels/neighbors.cpp
                              PROPERTIES COMPILE_OPTIONS -ffp-contract=off)
  set(levels baseline)
  if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
    list(APPEND levels avx2 avx512)
  endif()
  set(avx2_flags -mavx2 -mfma -mf16c)
  set(avx512_flags -mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mprefer-vector-width=512)
  foreach(level IN LISTS levels)
    add_library(kernels_${level} OBJECT ${sources})
    target_compile_definitions(kernels_${level} PRIVATE PRUNEFUSE_ISA=${level})
    # Contraction makes a*b+c one fused multiply-add where the level has it. -Wno-psabi: vectors are passed between
    # functions of one file only.
    target_compile_options(kernels_${level} PRIVATE -ffp-contract=fast -Wno-psabi ${${level}_flags} ${ARGN})
    target_link_libraries(kernels_${level} PRIVATE warnings)
    target_link_libraries(${target} PRIVATE kernels_${level})
  endforeach()
endfunction()
