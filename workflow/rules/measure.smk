# Raw records. One job per row and protocol runs all arms, interleaved, alone on the machine.
#
# Measurements are kept in files named by the hash of everything that decides what they say: other
# settings, another engine, model or machine make another file. Those files are no outputs: Snakemake
# would delete or refuse them when an input gets a new date, and an interrupted job could not
# continue. The output is a copy of the kept file; where that is there, the job only copies.
#
# Only files that no rule makes are ancient(): where a rule makes the file and has to run, Snakemake 9
# would skip the measurement although its output is missing.

from tec.measure import measure_key
from tec.system import read_system

COMMANDS = {"prompts": "measure prompts", "random": "measure random", "parity": "parity run"}
MACHINE = read_system().fingerprint


rule measure:
    input:
        build=relative(paths.build_manifest(TARGET)),
        model=relative(paths.model_record("{row}")),
        prompts=lambda wildcards: ancient(str(ROWS[wildcards.row].prompts)),
        text=ancient(str(STUDY.parity.text)),
    output:
        f"{RESULTS}/runs/{{row}}.{{protocol}}.jsonl",
    log:
        f".cache/logs/{STUDY.name}/{{row}}.{{protocol}}.log",
    wildcard_constraints:
        protocol="|".join(COMMANDS),
    params:
        command=lambda wildcards: COMMANDS[wildcards.protocol],
        key=lambda wildcards: measure_key(
            STUDY, ROWS[wildcards.row], wildcards.protocol, [ENGINE, *build_settings(TARGET)], MACHINE
        ),
    resources:
        machine=WHOLE_MACHINE,
    shell:
        "{TEC} {params.command} {STUDY.name} {wildcards.row} --build {input.build} --model {input.model}"
        " --kept {RESULTS}/kept/{wildcards.row}.{wildcards.protocol}.{params.key}.jsonl"
        " --out {output} --log {log} --wait 600"
