# llama.cpp's project() includes this (tec.build says so).

# A shorter build of what no measurement times: half of the compiler's time would go into chat formats,
# HTTP and one of upstream's tests. Whatever computes, ggml, libllama and the programs, is compiled as
# upstream compiles it.
function(tec_shorten_build)
    set_target_properties(llama-common PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE 8)
    # specialises templates that others in its batch may use
    set_source_files_properties(
        ${CMAKE_SOURCE_DIR}/common/json.cpp TARGET_DIRECTORY llama-common PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON)
    target_compile_options(llama-common PRIVATE -O1)
    target_compile_options(cpp-httplib PRIVATE -O0)
    target_compile_options(test-backend-ops PRIVATE -O1)
endfunction()

# llama-server's page for browsers. Upstream's script fetches it or has npm make it, but is none of the
# pinned parts (pin.yaml). Without the script a page that says so is embedded by upstream's templates, and
# the target that would run the script does nothing. A source that has the script is left alone.
function(tec_embed_server_page)
    if(NOT TARGET llama-ui-assets OR EXISTS ${CMAKE_SOURCE_DIR}/scripts/ui-assets.cmake)
        return()
    endif()
    get_target_property(ui llama-ui-assets SOURCE_DIR)
    get_target_property(made llama-ui-assets BINARY_DIR)
    file(READ ${CMAKE_CURRENT_FUNCTION_LIST_DIR}/server-page.html page)
    string(SHA256 etag "${page}")
    set(LLAMA_UI_HAS_ASSETS 1)
    set(N_ASSETS 1)
    set(USE_GZIP false)
    set(ASSET_ARRAYS "static const unsigned char page[] = R\"page(${page})page\";")
    string(CONCAT ASSET_TABLE
        "    { \"index.html\", page, sizeof(page) - 1, \"\\\"${etag}\\\"\", "
        "\"text/html; charset=utf-8\" },")
    configure_file(${ui}/ui.h.in ${made}/ui.h @ONLY)
    configure_file(${ui}/ui.cpp.in ${made}/ui.cpp @ONLY)
    set_property(DIRECTORY ${ui} PROPERTY RULE_LAUNCH_CUSTOM "${CMAKE_COMMAND} -E true")
endfunction()

cmake_language(DEFER DIRECTORY ${CMAKE_SOURCE_DIR} CALL tec_shorten_build)
cmake_language(DEFER DIRECTORY ${CMAKE_SOURCE_DIR} CALL tec_embed_server_page)
