# The pinned llama.cpp tree, and the working tree with the series on top. Both count by content: the
# digest is in the name, the series' hash a parameter, and a checkout that only touches files redoes
# nothing.


rule source:
    input:
        ancient(relative(paths.PIN)),
    output:
        relative(paths.source_record(PIN.digest)),
    shell:
        "{TEC} source"


rule patch:
    input:
        rules.source.output,
        [ancient(relative(file)) for file in SERIES.files],
    output:
        relative(paths.PATCHED_SERIES),
    params:
        engine=ENGINE,
    shell:
        "{TEC} patches apply"
