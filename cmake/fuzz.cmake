# Every tests/fuzz/fuzz_NAME.c is a libFuzzer program. It starts from tests/fuzz/corpus/NAME, where that exists; what it finds on
# the way is kept in the build folder.
file(GLOB tests CONFIGURE_DEPENDS fuzz/fuzz_*.c)
foreach(test ${tests})
    get_filename_component(program ${test} NAME_WE)
    string(REGEX REPLACE "^fuzz_" "" name ${program})
    add_executable(${program} ${test})
    target_link_libraries(${program} PRIVATE ferry_parts ferry_testing)
    target_link_options(${program} PRIVATE -fsanitize=fuzzer)
    set(corpus ${CMAKE_BINARY_DIR}/corpus/${name})
    file(MAKE_DIRECTORY ${corpus})
    if(IS_DIRECTORY ${CMAKE_CURRENT_SOURCE_DIR}/fuzz/corpus/${name})
        list(APPEND corpus ${CMAKE_CURRENT_SOURCE_DIR}/fuzz/corpus/${name})
    endif()
    math(EXPR seconds "${FERRY_FUZZ_SECONDS} + 60")
    check(${name} fuzz ${seconds} ${program} -seed=1 -max_total_time=${FERRY_FUZZ_SECONDS} -timeout=10 -print_final_stats=1
          -artifact_prefix=${CMAKE_BINARY_DIR}/${program}- ${corpus})
endforeach()
