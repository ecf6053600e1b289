# Pins chosen by frequency, and what they are worth on text that they were not chosen from.
#
# Only rows with the protocol `locality` take part: the held-out text is the one whose routing that
# records.

from tec.calibrate import BUILT_IN
from tec.files import sha256_file


def calibrated(rows=None):
    """What calibrating the rows makes: lists, their records, and the routing behind them."""
    chosen = rows_with("locality") if rows is None else rows
    return expand(f"{RESULTS}/calibration/{{row}}.{{suffix}}", row=chosen, suffix=["pins.txt", "pins.txt.json", "npy"])


rule calibrate:
    input:
        build=relative(paths.build_manifest(TARGET)),
        model=model_of,
        prompt=ancient(relative(BUILT_IN)),
    output:
        calibrated(["{row}"]),
    log:
        f".cache/logs/{STUDY.name}/{{row}}.calibrate.log",
    params:
        engine=[ENGINE, *build_settings(TARGET)],
        prompt=sha256_file(BUILT_IN),
    resources:
        machine=WHOLE_MACHINE,
    shell:
        "{TEC} calibrate {input.model} --build {input.build} --prompt {input.prompt}"
        " --out {output[0]} --trace {output[2]} --log {log} --wait 600 --failure-as-outcome"


rule calibration:
    localrule: True
    input:
        runs=runs("locality"),
        traces=traces(),
        made=calibrated(),
        templates=expand("paper/templates/table.{suffix}.j2", suffix=["md", "tex"]),
        code=expand(
            "workflow/tec/{module}.py",
            module=["calibration", "calibration_table", "calibration_check", "locality_kernels", "table"],
        ),
    output:
        report(
            f"{RESULTS}/tables/calibration.csv",
            caption="../report/table.rst",
            category="Tables",
        ),
        expand(f"{RESULTS}/tables/calibration.{{suffix}}", suffix=["md", "tex"]),
    params:
        rows=shlex.join(word for row in rows_with("locality") for word in ("--row", row)),
    shell:
        "{TEC} calibration {RESULTS} {params.rows}"
