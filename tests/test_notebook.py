"""The chapter's notebook runs from top to bottom, as a reader would run it."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from processes import PATIENCE

NOTEBOOK = Path(__file__).parents[1] / "docs" / "chapter.ipynb"


@pytest.mark.real
@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path, real_cache: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VGGEXP_CACHE", real_cache)
    stored = nbformat.read(NOTEBOOK, as_version=4)
    assert NOTEBOOK.stat().st_size < 250_000
    book = nbformat.from_dict(stored)
    for cell in book.cells:
        cell.source = cell.source.replace("data.train_size=4000", "data.train_size=1000")
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(book, timeout=PATIENCE, coalesce_streams=True, kernel_name="python3", resources=resources).execute()
    for before, after in zip(stored.cells, book.cells, strict=True):
        kinds = [{output.output_type for output in cell.get("outputs", [])} for cell in (before, after)]
        assert kinds[0] == kinds[1], before.source
    assert {"0", "1", "2", "3"} <= {path.name for path in tmp_path.glob("outputs/*/*")}, "the sweep's runs"
