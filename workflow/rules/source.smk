# The pinned llama.cpp tree, and the working tree with the series on top.


rule source:
    input:
        relative(paths.PIN),
    output:
        relative(paths.source_record(PIN.digest)),
    shell:
        "{TEC} source"


rule patch:
    input:
        rules.source.output,
        [relative(file) for file in SERIES.files],
    output:
        relative(paths.PATCHED_SERIES),
    params:
        engine=ENGINE,
    shell:
        "{TEC} patches apply"
