# A row's model file, checked, with its geometry.


def model_file(wildcards):
    """The row's file if it is there; if not, `tec model` says what to do.

    Its SHA-256 is a parameter: a copy with a newer date is the same model.
    """
    file = ROWS[wildcards.row].source.path
    return ancient(str(file)) if file.exists() else []


rule model:
    input:
        model_file,
    output:
        relative(paths.model_record("{row}")),
    params:
        source=lambda wildcards: ROWS[wildcards.row].source.model_dump_json(),
    shell:
        "{TEC} model {wildcards.row}"
