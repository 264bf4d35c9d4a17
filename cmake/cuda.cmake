# libferry_cuda.so: the CUDA device, a library of its own that libferry.so loads when a group asks for it. Where nvcc is not found
# there is none, and nothing else changes.
find_program(FERRY_NVCC nvcc HINTS ENV CUDA_HOME PATHS /usr/local/cuda PATH_SUFFIXES bin DOC "CUDA's compiler")
set(possible ON)
if(NOT FERRY_NVCC OR CMAKE_CROSSCOMPILING OR sanitizers)
    set(possible OFF)
endif()
option(FERRY_CUDA "Build libferry_cuda.so (needs nvcc)" ${possible})
if(NOT FERRY_CUDA)
    return()
endif()
if(NOT FERRY_NVCC)
    message(FATAL_ERROR "FERRY_CUDA needs nvcc: on the PATH, or in CUDA_HOME/bin")
endif()

if(NOT CMAKE_CUDA_COMPILER)
    set(CMAKE_CUDA_COMPILER ${FERRY_NVCC})
endif()
if(NOT CMAKE_CUDA_ARCHITECTURES)
    set(CMAKE_CUDA_ARCHITECTURES 80-real 90-real 100-real 100-virtual) # the last one: PTX for what comes after
endif()
enable_language(CUDA)
find_package(CUDAToolkit REQUIRED)

file(GLOB parts CONFIGURE_DEPENDS src/cuda/*.c src/cuda/*.cu)
add_library(ferry_cuda MODULE ${parts})
set_target_properties(ferry_cuda PROPERTIES
    CUDA_STANDARD 17 CUDA_STANDARD_REQUIRED ON CUDA_EXTENSIONS OFF CUDA_RUNTIME_LIBRARY Static
    CUDA_VISIBILITY_PRESET hidden LINKER_LANGUAGE C LINK_DEPENDS ${CMAKE_SOURCE_DIR}/cmake/ferry_cuda.map)
# In place of the C flags that hold everywhere: nvcc does not take them. Products and sums stay apart on the GPU as well.
set_property(TARGET ferry_cuda PROPERTY COMPILE_OPTIONS "$<$<COMPILE_LANGUAGE:C>:${flags}>"
             $<$<COMPILE_LANGUAGE:CUDA>:-fmad=false> $<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-ffp-contract=off>)
if(FERRY_WERROR)
    set_property(TARGET ferry_cuda APPEND PROPERTY COMPILE_OPTIONS "$<$<COMPILE_LANGUAGE:CUDA>:SHELL:-Werror all-warnings>")
endif()
target_link_libraries(ferry_cuda PRIVATE CUDA::cudart_static Threads::Threads m)
target_link_options(ferry_cuda PRIVATE -Wl,--as-needed -Wl,-z,defs
                    -Wl,--version-script=${CMAKE_SOURCE_DIR}/cmake/ferry_cuda.map)
install(TARGETS ferry_cuda LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
