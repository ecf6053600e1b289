# llama.cpp's project() includes this (tec.build says so): a shorter build of what no measurement times.
# Half of the compiler's time would go into chat formats, HTTP and one of upstream's tests. Whatever
# computes, ggml, libllama and the programs, is compiled as upstream compiles it.

function(tec_shorten_build)
    set_target_properties(llama-common PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE 8)
    # specialises templates that others in its batch may use
    set_source_files_properties(
        ${CMAKE_SOURCE_DIR}/common/json.cpp TARGET_DIRECTORY llama-common PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON)
    target_compile_options(llama-common PRIVATE -O1)
    target_compile_options(cpp-httplib PRIVATE -O0)
    target_compile_options(test-backend-ops PRIVATE -O1)
endfunction()

cmake_language(DEFER DIRECTORY ${CMAKE_SOURCE_DIR} CALL tec_shorten_build)
