# A row's model file, checked, with its geometry: a file of this repository, one from the hub, or a
# miniature or replica made with the build's programs.

from tec import hub_lock
from tec.config import FileSource, HubSource
from tec.miniature_key import recipe_settings


def model_inputs(wildcards):
    """The programs that make a miniature or a replica, or the row's file if it is there; the hub's are fetched.

    Its SHA-256 is a parameter: a copy with a newer date is the same model.
    """
    checked(SELECTION.check_variant, wildcards.row, wildcards.variant)
    source = ROWS[wildcards.row].source
    if wildcards.variant != "full":
        return [relative(paths.build_manifest(TARGET))]
    if isinstance(source, FileSource) and source.path.exists():
        return [ancient(str(source.path))]
    return []


def model_settings(wildcards):
    """What decides the model besides files: its source, its shape, a recipe or the hub's lock."""
    row = ROWS[wildcards.row]
    settings = [row.model_dump_json(include={"source", "shape"})]
    if wildcards.variant == "miniature":
        settings.append(recipe_settings(row))
    elif wildcards.variant == "replica":
        settings.append(row.model_dump_json(include={"replica"}))
    elif isinstance(row.source, HubSource):
        settings.append(pinned(row))
    return settings


def pinned(row):
    """What the lock has of a row; an entry that does not fit fails the row's job, not the graph."""
    try:
        entry = hub_lock.pinned(paths.HUB_LOCK, row.name, row.source)
    except TecError as error:
        return error.what
    return entry.model_dump_json() if entry else "not pinned yet"


def from_hub(wildcards):
    """1 if the file is downloaded: the profile says how many at a time."""
    return int(wildcards.variant == "full" and isinstance(ROWS[wildcards.row].source, HubSource))


rule model:
    input:
        model_inputs,
    output:
        relative(paths.model_record("{row}", "{variant}")),
    params:
        settings=model_settings,
        build=lambda wildcards, input: f"--build {input}" if wildcards.variant != "full" else "",
    resources:
        downloads=from_hub,
    shell:
        "{TEC} model {wildcards.row} --variant {wildcards.variant} {params.build} --failure-as-outcome"
