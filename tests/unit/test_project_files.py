"""Files that say the same thing twice for different readers, and must agree."""

import json
import re
import subprocess
import sys
import tomllib
from typing import Any

import yaml
from packaging.requirements import Requirement
from packaging.version import Version

import tec
from tec.paths import ROOT
from tec.schema import drift

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WANTED: list[str] = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]


def locked() -> dict[str, list[Version]]:
    """Return the lock file's packages; one may be pinned twice for different Pythons."""
    pins: dict[str, list[Version]] = {}
    for name, version in re.findall(r"^([\w.-]+)==([^\s;]+)", lock_text(), re.MULTILINE):
        pins.setdefault(name, []).append(Version(version))
    return pins


def lock_text() -> str:
    return (ROOT / "requirements.lock").read_text()


def test_environment_for_conda_users_has_the_same_packages() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    *conda, pip = environment["dependencies"]
    assert sorted(pip["pip"]) == sorted(WANTED)
    assert f"python{PROJECT['requires-python']}" in conda


def test_lock_satisfies_every_requirement_with_hashes() -> None:
    pins = locked()
    for text in WANTED:
        requirement = Requirement(text)
        assert all(version in requirement.specifier for version in pins[requirement.name]), text
    blocks = re.split(r"\n(?=\S)", lock_text().strip())
    assert all("--hash=sha256:" in block for block in blocks)


def test_environment_lacks_nothing_that_its_packages_need() -> None:
    """The Makefile installs what the lock names, without asking what the packages need."""
    done = subprocess.run(
        [sys.executable, "-m", "pip", "check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_lock_names_no_registry() -> None:
    assert "://" not in lock_text()


def test_versions_agree() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert tec.__version__ == PROJECT["version"] == citation["version"]
    assert f"## [{tec.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_schemas_are_those_of_the_models() -> None:
    assert drift() == [], "run: tec schema --write"


def test_schemas_refuse_unknown_keys() -> None:
    for name in ("study", "row", "pin"):
        schema = json.loads((ROOT / "configs" / "schema" / f"{name}.json").read_text())
        assert schema["additionalProperties"] is False


def test_readme_says_how_much_is_fetched() -> None:
    pin = yaml.safe_load((ROOT / "llama.cpp" / "pin.yaml").read_text())
    (megabytes,) = (source["megabytes"] for source in pin["sources"] if "megabytes" in source)
    assert f"fetches llama.cpp ({megabytes} MB)" in (ROOT / "README.md").read_text()
