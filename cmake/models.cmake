# The protocol's models, checked with SPIN: docs/verification.md. They do not depend on how the library is built.
set(models ${CMAKE_SOURCE_DIR}/tests/model)
file(GLOB files CONFIGURE_DEPENDS ${models}/*.pml)
list(FILTER files EXCLUDE REGEX "/note\\.pml$") # what the others include
foreach(file ${files})
    get_filename_component(name ${file} NAME_WE)
    check(${name} model 300 ${models}/run.sh ${file})
endforeach()
check(names model 10 ${models}/names.sh ${CMAKE_SOURCE_DIR})
