"""What the pages say of speed names the revision that was measured, and says so where the code has changed since."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "performance.md"
SPEED = (
    *("src/vggexp/models", "src/vggexp/training", "src/vggexp/data/datamodule.py", "src/vggexp/data/resize.py"),
    *("src/vggexp/data/source.py", "src/vggexp/data/preparation.py", "src/vggexp/data/augment.py"),
)
"""The code whose speed the tables tell."""
CHANGED = 300  # lines of it, added or removed, after which a table counts as older than the code


def git(*words: str) -> str:
    return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True).stdout


@pytest.fixture
def _history() -> None:
    if not (ROOT / ".git").exists() or git("rev-parse", "--is-shallow-repository").strip() == "true":
        pytest.skip("needs the repository's history: a clone of full depth")


def outdated(text: str, changed: dict[str, int]) -> list[str]:
    """The notes on revisions that say too little, or too much, of lines that have changed since."""
    notes = re.findall(r"[Rr]evision\s([0-9a-f]{7,40})\b(,\solder\sthan\sthe\scode)?", text)
    return [revision for revision, old in notes if (changed[revision] > CHANGED) != bool(old)]


@pytest.mark.usefixtures("_history")
def test_a_table_says_whether_it_is_older_than_the_code() -> None:
    text = PAGE.read_text(encoding="utf-8")
    changed = {
        revision: sum(
            int(number)
            for line in git("diff", "--numstat", revision, "--", *SPEED).splitlines()
            for number in line.split("\t")[:2]
        )
        for revision in re.findall(r"[Rr]evision\s([0-9a-f]{7,40})\b", text)
    }
    assert len(changed) >= 4
    assert outdated(text, changed) == []


def test_every_section_with_a_command_names_its_revision() -> None:
    """But for the sections that tell of choices and of what was not measured."""
    sections = re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    measured = [part for part in sections if re.search(r"^\|.*\d", part, re.MULTILINE) and "benchmark" in part]
    assert len(measured) >= 5
    without = [part.partition("\n")[0] for part in measured if not re.search(r"[Rr]evision\s[0-9a-f]{7}", part)]
    assert without == ["Choices by measurement"]


def test_what_counts_as_older() -> None:
    text = "(Revision abcdef0.) revision 1234567, older\nthan the code; revision aaaaaaa"
    assert outdated(text, {"abcdef0": 0, "1234567": 301, "aaaaaaa": 300}) == []
    assert outdated(text, {"abcdef0": 301, "1234567": 300, "aaaaaaa": 0}) == ["abcdef0", "1234567"]
