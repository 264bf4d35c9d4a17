# FERRY_CARRY: a build folder that can be carried to another machine. The libraries of the command and of the tests that such a machine
# may lack go into lib/, and programs look for them from where they lie themselves.
option(FERRY_CARRY "Put cJSON and cmocka into the build folder, which can then be moved" OFF)
if(NOT FERRY_CARRY)
    return()
endif()
set(CMAKE_BUILD_RPATH "$ORIGIN/lib;$ORIGIN/../lib")
set(CMAKE_BUILD_RPATH_USE_ORIGIN ON)
foreach(name cjson cmocka)
    string(TOUPPER ${name} variable)
    find_library(${variable}_LIBRARY ${name} REQUIRED)
    get_filename_component(folder ${${variable}_LIBRARY} REALPATH)
    get_filename_component(folder ${folder} DIRECTORY)
    file(GLOB copies ${folder}/lib${name}.so.*)
    foreach(copy ${copies}) # a file under each of its names: links are not carried everywhere
        get_filename_component(file ${copy} NAME)
        configure_file(${copy} ${CMAKE_BINARY_DIR}/lib/${file} COPYONLY)
    endforeach()
endforeach()
