import pytest

from tec.errors import TecError
from tec.pack_lock import read_requirements
from tec.pack_target import PackTarget, least_glibc, this_platform, this_python
from tec.paths import ROOT

X86 = PackTarget("3.12", "manylinux_2_28_x86_64")
ARM_MAC = PackTarget("3.11", "macosx_14_0_arm64")


class TestPlatforms:
    def test_every_older_c_library_counts_best_first(self) -> None:
        platforms = X86.platforms()
        assert platforms[0] == "manylinux_2_28_x86_64"
        assert platforms.index("manylinux_2_17_x86_64") < platforms.index("manylinux2014_x86_64")
        assert platforms[-2:] == ["manylinux1_x86_64", "linux_x86_64"]

    def test_other_processors_begin_with_2_17(self) -> None:
        platforms = PackTarget("3.12", "manylinux_2_18_aarch64").platforms()
        assert platforms == [
            "manylinux_2_18_aarch64",
            "manylinux_2_17_aarch64",
            "manylinux2014_aarch64",
            "linux_aarch64",
        ]

    def test_musl_and_macos(self) -> None:
        musl = PackTarget("3.12", "musllinux_1_2_x86_64").platforms()
        assert musl == [f"musllinux_1_{minor}_x86_64" for minor in (2, 1, 0)]
        assert ARM_MAC.platforms() == ["macosx_14_0_arm64"]
        assert (ARM_MAC.system, ARM_MAC.machine) == ("darwin", "arm64")

    def test_this_machine_is_a_target(self) -> None:
        assert PackTarget(this_python(), this_platform()).platforms()


@pytest.mark.parametrize("python", ["3.10", "3", "3.12.1", "2.7", "4.0"])
def test_python_that_cannot_run_the_project_is_refused(python: str) -> None:
    with pytest.raises(TecError, match=f"cannot pack for Python {python}"):
        PackTarget(python, X86.platform)


@pytest.mark.parametrize("platform", ["linux", "win_amd64", "manylinux_2_28", "x86_64"])
def test_platform_that_is_no_tag_is_refused_with_examples(platform: str) -> None:
    with pytest.raises(TecError, match="manylinux_2_28_aarch64"):
        PackTarget("3.12", platform)


@pytest.mark.parametrize(
    ("wheels", "expected"),
    [
        (["a-1-py3-none-any.whl"], None),
        (["a-1-cp312-cp312-manylinux_2_27_x86_64.manylinux_2_28_x86_64.whl"], "2.27"),
        (["a-1-cp312-cp312-manylinux_2_12_x86_64.manylinux2010_x86_64.whl"], "2.12"),
        (["a-1-py3-none-manylinux1_x86_64.whl", "b-1-cp312-abi3-manylinux2014_x86_64.whl"], "2.17"),
        (["a-1-cp312-cp312-musllinux_1_2_x86_64.whl"], None),
    ],
)
def test_oldest_c_library_that_all_wheels_run_on(wheels: list[str], expected: str | None) -> None:
    assert least_glibc(wheels) == expected


class TestLockFile:
    LOCK = (ROOT / "requirements.lock").read_text()

    @pytest.mark.parametrize(
        ("python", "text"), [("3.11", "python_full_version < '3.12'"), ("3.12", ">= '3.12'")]
    )
    def test_markers_are_judged_for_the_target(self, python: str, text: str) -> None:
        """The lock pins numpy twice, for different Pythons."""
        entries = read_requirements(self.LOCK, PackTarget(python, X86.platform))
        (numpy,) = (entry for entry in entries if entry.name == "numpy")
        (line,) = (li for li in self.LOCK.splitlines() if li.startswith("numpy=") and text in li)
        assert line.startswith(f"numpy=={numpy.version} ")

    def test_each_name_once_and_none_of_other_systems(self) -> None:
        names = [entry.name for entry in read_requirements(self.LOCK, X86)]
        assert len(names) == len(set(names))
        assert {"snakemake", "setuptools", "connection-pool"} <= set(names)
        assert not {"colorama", "pyreadline3"} & set(names)

    def test_all_hashes_are_kept(self) -> None:
        entries = read_requirements(self.LOCK, X86)
        (ninja,) = (entry for entry in entries if entry.name == "ninja")
        assert len(ninja.hashes) > 10
        assert ninja.line().count("--hash=sha256:") == len(ninja.hashes)

    @pytest.mark.parametrize("entry", ["a>=1 --hash=sha256:" + "0" * 64, "a==1", "a==1.*", "??"])
    def test_entry_that_is_not_pinned_is_refused(self, entry: str) -> None:
        with pytest.raises(TecError, match=r"requirements\.lock"):
            read_requirements(f"# comment\n{entry}\n", X86)
