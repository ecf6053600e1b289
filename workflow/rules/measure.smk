# Raw records. One job per row and protocol runs all arms, interleaved, alone on the machine. What
# decides about measuring again is `key` and a new build or model, not the age of files or the wording
# of a rule. Only files that no rule makes are ancient(): where a rule makes the file and has to run,
# Snakemake 9 would skip the measurement although its own parameters changed or its output is missing.

from tec.measure import measure_key


rule measure:
    input:
        build=relative(paths.build_manifest(TARGET)),
        model=relative(paths.model_record("{row}")),
        prompts=lambda wildcards: ancient(str(ROWS[wildcards.row].prompts)),
    output:
        protected(f"{RESULTS}/runs/{{row}}.{{protocol}}.jsonl"),
    log:
        f".cache/logs/{STUDY.name}/{{row}}.{{protocol}}.log",
    wildcard_constraints:
        protocol="prompts|random",
    params:
        key=lambda wildcards: measure_key(
            STUDY, ROWS[wildcards.row], wildcards.protocol, ENGINE, TARGET
        ),
    resources:
        machine=WHOLE_MACHINE,
    shell:
        "{TEC} measure {wildcards.protocol} {STUDY.name} {wildcards.row} --build {input.build}"
        " --model {input.model} --out {output} --log {log} --wait 600"


rule measure_parity:
    input:
        build=relative(paths.build_manifest(TARGET)),
        model=relative(paths.model_record("{row}")),
        prompts=lambda wildcards: ancient(str(ROWS[wildcards.row].prompts)),
        text=ancient(str(STUDY.parity.text)),
    output:
        protected(f"{RESULTS}/runs/{{row}}.parity.jsonl"),
    log:
        f".cache/logs/{STUDY.name}/{{row}}.parity.log",
    params:
        key=lambda wildcards: measure_key(STUDY, ROWS[wildcards.row], "parity", ENGINE, TARGET),
    resources:
        machine=WHOLE_MACHINE,
    shell:
        "{TEC} parity run {STUDY.name} {wildcards.row} --build {input.build}"
        " --model {input.model} --out {output} --log {log} --wait 600"
