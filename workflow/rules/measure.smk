# Raw records. One job per row and protocol runs all arms, interleaved, alone on the machine.
#
# Measurements are kept in files named by the hash of everything that decides what they say
# (tec.measure_key): other settings, another engine, model or machine make another file. Those files
# are no outputs: Snakemake would delete or refuse them when an input gets a new date, and an
# interrupted job could not continue. The output is a copy of the kept file; where that is there, the
# job only copies.
#
# Only files that no rule makes are ancient(): where a rule makes the file and has to run, Snakemake 9
# would skip the measurement although its output is missing.
#
# A row that fails leaves its failure in the output (tec.outcome), and the other rows go on. Where one
# arm's file is asked for, there are no others: the job fails.

from tec.choice import choose
from tec.inputs import INPUTS
from tec.measure_key import settings_key
from tec.system import read_system

COMMANDS = {
    "prompts": "measure prompts",
    "random": "measure random",
    "locality": "measure locality",
    "replay": "measure replay",
    "parity": "parity run",
}
MACHINE = read_system().fingerprint


def rows_with(protocol):
    """The rows that have a protocol, in the study's order."""
    return [row for row in ROWS if protocol in SELECTION.protocols(row)]


def runs(*protocols):
    """The records of every row that has one of the protocols, row by row."""
    return [
        f"{RESULTS}/runs/{row}.{protocol}.jsonl"
        for row in ROWS
        for protocol in SELECTION.protocols(row)
        if protocol in protocols
    ]


def traces():
    """The recorded routing of every row that has the protocol `locality`."""
    return expand(f"{RESULTS}/traces/{{row}}.{{input}}.npy", row=rows_with("locality"), input=INPUTS)


def choice_of(wildcards, protocol=None):
    """What of the row's arms is run: what the command line chose, or the one arm of a file."""
    protocol = protocol or wildcards.protocol
    if not hasattr(wildcards, "arm"):
        return SELECTION.choice_of(wildcards.row, protocol)
    choice = choose(wildcards.arm, SELECTION.choice.capacities, SELECTION.choice.rounds)
    shape, arms = SELECTION.shapes[wildcards.row], SELECTION.arms(wildcards.row)
    if shape:
        checked(choice.check, wildcards.row, arms, shape.n_expert, shape.n_expert_used)
    return choice.with_reference(STUDY.scope(wildcards.row), protocol)


def settings(wildcards, protocol=None):
    """The hash of what the study says about the measurement; the build and model are inputs."""
    protocol = protocol or wildcards.protocol
    return settings_key(STUDY, ROWS[wildcards.row], protocol, choice_of(wildcards, protocol))


def chosen(wildcards, protocol=None):
    """The choice of arms as arguments."""
    return shlex.join(choice_of(wildcards, protocol).words())


def model_of(wildcards):
    """The record of the row's model, for a protocol that the study runs on it."""
    checked(SELECTION.check_protocol, wildcards.row, getattr(wildcards, "protocol", "locality"))
    return relative(paths.model_record(wildcards.row, STUDY.variant(wildcards.row)))


MEASURED = dict(
    build=relative(paths.build_manifest(TARGET)),
    model=model_of,
    prompts=lambda wildcards: ancient(str(ROWS[wildcards.row].prompts)),
    text=lambda wildcards: ancient(str(STUDY.scope(wildcards.row).parity.text)),
)
MEASURE = (
    "{TEC} {params.command} {STUDY.name} {wildcards.row} --build {input.build} --model {input.model}"
    " --kept {RESULTS}/kept --out {output[0]} --log {log} --wait 600 {params.chosen}"
)


rule measure:
    input:
        **MEASURED,
    output:
        f"{RESULTS}/runs/{{row}}.{{protocol}}.jsonl",
    log:
        f".cache/logs/{STUDY.name}/{{row}}.{{protocol}}.log",
    wildcard_constraints:
        protocol="prompts|random|replay|parity",
    params:
        command=lambda wildcards: COMMANDS[wildcards.protocol],
        settings=settings,
        engine=[ENGINE, *build_settings(TARGET)],
        system=MACHINE,
        chosen=chosen,
    resources:
        machine=WHOLE_MACHINE,
    shell:
        MEASURE + " --failure-as-outcome"


rule measure_locality:
    input:
        **MEASURED,
    output:
        f"{RESULTS}/runs/{{row}}.locality.jsonl",
        expand(f"{RESULTS}/traces/{{{{row}}}}.{{input}}.npy", input=INPUTS),
    log:
        f".cache/logs/{STUDY.name}/{{row}}.locality.log",
    params:
        command=COMMANDS["locality"],
        settings=lambda wildcards: settings(wildcards, "locality"),
        engine=[ENGINE, *build_settings(TARGET)],
        system=MACHINE,
        chosen=lambda wildcards: chosen(wildcards, "locality"),
    resources:
        machine=WHOLE_MACHINE,
    shell:
        MEASURE + " --traces {RESULTS}/traces --failure-as-outcome"


# One arm of one row, where its file is asked for by name.
rule measure_arm:
    input:
        **MEASURED,
    output:
        f"{RESULTS}/arms/{{row}}.{{protocol}}.{{arm}}.jsonl",
    log:
        f".cache/logs/{STUDY.name}/{{row}}.{{protocol}}.{{arm}}.log",
    wildcard_constraints:
        protocol="prompts|random|replay|parity",
        arm=r"[a-z0-9][a-z0-9._-]*",
    params:
        command=lambda wildcards: COMMANDS[wildcards.protocol],
        settings=settings,
        engine=[ENGINE, *build_settings(TARGET)],
        system=MACHINE,
        chosen=chosen,
    resources:
        machine=WHOLE_MACHINE,
    shell:
        MEASURE
