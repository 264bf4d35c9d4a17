# Linters, over every C file of the project or over the files of the library and the command.
file(GLOB_RECURSE all CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/include/*.h ${CMAKE_SOURCE_DIR}/src/*.[ch]
     ${CMAKE_SOURCE_DIR}/tools/*.[ch] ${CMAKE_SOURCE_DIR}/tests/*.[ch] ${CMAKE_SOURCE_DIR}/bench/*.[ch] ${CMAKE_SOURCE_DIR}/examples/*.[ch])
check(format lint 60 clang-format --dry-run -Werror ${all})

# The analyzer's paths through a file take ten times as long as all other checks. -DFERRY_LINT=DEEP (make soak) follows them all the way.
if(NOT FERRY_LINT STREQUAL "DEEP")
    foreach(argument -analyzer-config mode=shallow)
        list(APPEND depth -extra-arg=-Xclang -extra-arg=${argument})
    endforeach()
endif()
check(tidy lint 900 run-clang-tidy -quiet ${depth} -p ${CMAKE_BINARY_DIR} "^${CMAKE_SOURCE_DIR}/(src|tools)/.*[.]c$")
set_tests_properties(lint.tidy PROPERTIES PROCESSORS 2) # it starts a process for each core

check(cppcheck lint 240 cppcheck --quiet --std=c11 --enable=warning,performance,portability --inline-suppr
      --error-exitcode=1 -D_GNU_SOURCE -D__x86_64__ -D__linux__ -D__GNUC__
      -I ${CMAKE_SOURCE_DIR}/include -I ${CMAKE_SOURCE_DIR}/src -I ${CMAKE_SOURCE_DIR}/tests
      -I ${CMAKE_SOURCE_DIR}/tools/ferry ${CMAKE_SOURCE_DIR}/src ${CMAKE_SOURCE_DIR}/tools)

file(GLOB pages CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/docs/man/*.[1-9])
check(man lint 30 mandoc -T lint -W warning ${pages} ${CMAKE_BINARY_DIR}/man/ferry-env.7)
