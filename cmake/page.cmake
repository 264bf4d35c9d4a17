# page(FILE NAME): a C file in the build folder that has the bytes of FILE, and a NUL, as `const char NAME[]`.
function(page file name)
    set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${file})
    file(READ ${file} hex HEX)
    string(REGEX REPLACE "(..)" "0x\\1," bytes "${hex}")
    file(CONFIGURE OUTPUT ${CMAKE_BINARY_DIR}/${name}.c CONTENT "extern const char ${name}[];\nconst char ${name}[] = {${bytes}0};\n" @ONLY)
endfunction()
