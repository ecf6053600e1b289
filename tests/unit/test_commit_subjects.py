import subprocess
from pathlib import Path

from tec.commit_subjects import commit_subjects


def commit(root: Path, subject: str) -> str:
    author = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
    for command in (["add", "."], [*author, "commit", "-q", "--allow-empty", "-m", subject]):
        subprocess.run(["git", *command], cwd=root, check=True)
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, check=True)
    return done.stdout.decode().strip()


def test_known_commits_have_their_subject_and_others_none(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    odd = commit(tmp_path, 'Copy "less" </script>\n\nbody')
    plain = commit(tmp_path, "Second")
    asked = [odd, f"{plain}-dirty", "f" * 40, "--all", None]
    assert commit_subjects(asked, tmp_path) == {odd: 'Copy "less" </script>', plain: "Second"}


def test_a_folder_without_a_repository_knows_none(tmp_path: Path) -> None:
    assert commit_subjects(["f" * 40], tmp_path / "missing") == {}
    assert commit_subjects([], tmp_path) == {}
