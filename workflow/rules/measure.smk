# Raw records. One job per row and protocol runs all arms, interleaved, alone on the machine. Its file
# is named by the hash of everything that decides what it says: other settings, another engine or
# another model make another file, and no measurement is ever overwritten. `runs` has the copies that
# belong to the present settings.
#
# Only files that no rule makes are ancient(): where a rule makes the file and has to run, Snakemake 9
# would skip the measurement although its output is missing. That a new date alone changes nothing is
# seen to upstream, where patches and models count by content.

from tec.measure import measure_key

COMMANDS = {"prompts": "measure prompts", "random": "measure random", "parity": "parity run"}


def kept_run(wildcards):
    """The file of the present settings for a row and protocol."""
    row, protocol = ROWS[wildcards.row], wildcards.protocol
    key = measure_key(STUDY, row, protocol, ENGINE, TARGET)
    return f"{RESULTS}/kept/{row.name}.{protocol}.{key}.jsonl"


rule measure:
    input:
        build=relative(paths.build_manifest(TARGET)),
        model=relative(paths.model_record("{row}")),
        prompts=lambda wildcards: ancient(str(ROWS[wildcards.row].prompts)),
        text=ancient(str(STUDY.parity.text)),
    output:
        protected(f"{RESULTS}/kept/{{row}}.{{protocol}}.{{key}}.jsonl"),
    log:
        f".cache/logs/{STUDY.name}/{{row}}.{{protocol}}.{{key}}.log",
    wildcard_constraints:
        protocol="|".join(COMMANDS),
        key="[0-9a-f]{12}",
    params:
        command=lambda wildcards: COMMANDS[wildcards.protocol],
    resources:
        machine=WHOLE_MACHINE,
    shell:
        "{TEC} {params.command} {STUDY.name} {wildcards.row} --build {input.build}"
        " --model {input.model} --out {output} --log {log} --wait 600"


rule runs:
    localrule: True
    input:
        kept_run,
    output:
        f"{RESULTS}/runs/{{row}}.{{protocol}}.jsonl",
    wildcard_constraints:
        protocol="|".join(COMMANDS),
    shell:
        "cat {input} > {output}"
