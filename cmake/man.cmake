# Man pages: those in docs/man, a one-line page for every other name that a page documents (docs/man/links.txt), and
# ferry-env(7), which the command writes from the library's table.
function(install_man page)
    string(REGEX REPLACE ".*\\." "" section ${page})
    install(FILES ${page} DESTINATION ${CMAKE_INSTALL_MANDIR}/man${section})
endfunction()

file(GLOB pages CONFIGURE_DEPENDS docs/man/*.[1-9])
foreach(page ${pages})
    install_man(${page})
endforeach()

if(EXISTS ${CMAKE_SOURCE_DIR}/docs/man/links.txt)
    set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS docs/man/links.txt)
    file(STRINGS docs/man/links.txt links REGEX "^[^#]")
    foreach(link ${links})
        if(NOT link MATCHES "^([^ ]+)\\.([1-9]) +([^ ]+)\\.([1-9])$")
            message(FATAL_ERROR "docs/man/links.txt: not 'NAME.SECTION PAGE.SECTION': ${link}")
        endif()
        set(page ${CMAKE_BINARY_DIR}/man/${CMAKE_MATCH_1}.${CMAKE_MATCH_2})
        file(WRITE ${page} ".so man${CMAKE_MATCH_4}/${CMAKE_MATCH_3}.${CMAKE_MATCH_4}\n")
        install_man(${page})
    endforeach()
endif()

if(FERRY_COMMAND AND NOT CMAKE_CROSSCOMPILING)
    set(page ${CMAKE_BINARY_DIR}/man/ferry-env.7)
    file(MAKE_DIRECTORY ${CMAKE_BINARY_DIR}/man)
    add_custom_command(OUTPUT ${page} DEPENDS ferry_command VERBATIM
                       COMMAND sh -c "\"$1\" info --man >\"$2.new\" && mv \"$2.new\" \"$2\"" sh $<TARGET_FILE:ferry_command> ${page})
    add_custom_target(ferry_env_page ALL DEPENDS ${page})
    install_man(${page})
endif()
