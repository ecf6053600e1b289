# llama.cpp's programs for a target. The build tree is no output: Snakemake would delete it when a
# job is interrupted, and the next run could not continue.

from tec.build import SHORTER, TESTS, TOOLS, cmake_arguments, portable
from tec.files import sha256_file


def build_settings(target):
    """What decides a build besides llama.cpp's tree and the series."""
    return [target, *portable(cmake_arguments(target, PIN.commit))]


rule build:
    input:
        rules.patch.output,
    output:
        relative(paths.build_manifest("{target}")),
    params:
        engine=ENGINE,
        settings=lambda wildcards: build_settings(wildcards.target),
        shorter=sha256_file(SHORTER),
        programs=TOOLS,
    threads: workflow.cores
    shell:
        "{TEC} build {wildcards.target} --jobs {threads}"


rule build_tests:
    input:
        rules.build.output,
    output:
        relative(paths.build_tests_manifest("{target}")),
    params:
        engine=ENGINE,
        settings=lambda wildcards: build_settings(wildcards.target),
        shorter=sha256_file(SHORTER),
        programs=TESTS,
    threads: workflow.cores
    shell:
        "{TEC} build {wildcards.target} --tests --jobs {threads}"


# Everything that `make test` runs.
rule binaries:
    localrule: True
    input:
        relative(paths.build_manifest("cpu")),
        relative(paths.build_tests_manifest("cpu")),
