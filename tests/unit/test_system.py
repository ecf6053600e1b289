import json
import os
import sys
from pathlib import Path

import pytest

from tec import system as system_module
from tec.cli import main
from tec.quantities import describe
from tec.system import physical_cores, read_system

CARD = "NVIDIA H100, 81559, 9.0, 1, 5, 16, 16, 570.10\n"
TABLE = "| NVIDIA-SMI 570.10    Driver Version: 570.10    CUDA Version: 12.8 |\n"


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty folder that is the whole PATH."""
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def install(folder: Path, name: str, body: str) -> None:
    script = folder / name
    script.write_text(f"#!{sys.executable}\nimport sys\n{body}\n")
    script.chmod(0o755)


def install_nvidia_smi(folder: Path, cards: str) -> None:
    body = f"print({cards!r} if len(sys.argv) > 1 else {TABLE!r}, end='')"
    install(folder, "nvidia-smi", body)


def test_machine_without_a_gpu(programs: Path) -> None:
    system = read_system()
    assert system.gpus == ()
    assert system.cuda_driver is None
    assert system.ram_bytes > 2**28
    assert 1 <= system.threads <= (os.cpu_count() or 1)
    assert read_system().fingerprint == system.fingerprint


def test_cores_are_those_that_the_process_may_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(8):  # 4 cores of 2 hardware threads each
        folder = tmp_path / f"cpu{number}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{number % 4},{number % 4 + 4}\n")
    monkeypatch.setattr(system_module, "_CPUS", tmp_path)
    for usable, wanted in ((range(8), 4), (range(4), 4), ({0, 4}, 1), ({0, 4, 5}, 2)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, u=usable: set(u), raising=False)
        assert physical_cores() == wanted
    monkeypatch.setattr(system_module, "_CPUS", tmp_path / "absent")
    monkeypatch.setattr("psutil.cpu_count", lambda logical: 2)
    assert physical_cores() == 2


def test_cards_are_read_from_nvidia_smi(programs: Path) -> None:
    install_nvidia_smi(programs, CARD * 2)
    system = read_system()
    assert len(system.gpus) == 2
    card = system.gpus[0]
    assert (card.name, card.vram_bytes) == ("NVIDIA H100", 81559 * 2**20)
    assert (card.pcie_gen, card.pcie_gen_max, card.pcie_width) == (1, 5, 16)
    assert (card.driver, system.cuda_driver) == ("570.10", "12.8")


def test_unsupported_fields_are_unknown(programs: Path) -> None:
    install_nvidia_smi(programs, "Thor, [N/A], 11.0, [N/A], [N/A], [N/A], [N/A], 580.1\n")
    card = read_system().gpus[0]
    assert card.vram_bytes is None
    assert card.pcie_gen is None


def test_fingerprint_ignores_an_idle_link_and_sees_another_card(programs: Path) -> None:
    install_nvidia_smi(programs, CARD)
    idle = read_system().fingerprint
    install_nvidia_smi(programs, CARD.replace(", 1, 5,", ", 5, 5,"))
    assert read_system().fingerprint == idle
    install_nvidia_smi(programs, CARD.replace("H100", "H200"))
    assert read_system().fingerprint != idle


def test_failing_nvidia_smi_means_no_gpu(programs: Path) -> None:
    install(programs, "nvidia-smi", "print('NVIDIA-SMI has failed'); sys.exit(9)")
    assert read_system().gpus == ()


def test_memory_speed_is_the_slowest_module(programs: Path) -> None:
    lines = "\tConfigured Memory Speed: 6000 MT/s\\n\tConfigured Memory Speed: 4800 MT/s\\n"
    install(programs, "dmidecode", f"print('{lines}\tConfigured Memory Speed: Unknown')")
    assert read_system().ram_speed == 4800


def test_description_has_units_and_every_card(programs: Path) -> None:
    install_nvidia_smi(programs, CARD)
    text = "\n".join(describe(read_system()))
    assert "gpus[0].vram_bytes" in text
    assert "79.6 GiB" in text


def test_command_prints_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["system", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["threads"] >= 1
    assert main(["system"]) == 0
    assert capsys.readouterr().out.startswith(f"fingerprint      {read_system().fingerprint}")
