"""The benchmark's loops train what they claim to train, and its tables add up. No test measures time."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import compare, loops
from vggexp.models import VGG

ROOT = Path(__file__).parents[1]


def test_the_chapters_network_is_ours() -> None:
    """With the same weights, layer by layer, both give the same logits."""
    chapter, ours = loops.chapter_network(96).eval(), VGG("vgg11", ratio=4, image_size=96).eval()
    for theirs, mine in zip(chapter.parameters(), ours.parameters(), strict=True):
        theirs.data.copy_(mine)
    images = torch.rand(3, 1, 96, 96)
    assert torch.allclose(chapter(images), ours(images), atol=1e-6)


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.parametrize("loop", loops.LOOPS)
def test_every_loop_trains_and_prints_what_it_measured(
    loop: str, real_cache: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VGGEXP_CACHE", real_cache)
    precision = "bf16" if loop == "bare" else "fp32"  # bf16 is ten times as slow on many a machine
    loops.main([loop, "--size", "32", "--images", "128", "--precision", precision])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["images_per_second"] > 0
    assert 2**27 < found["peak_memory_bytes"] < 2**35


@pytest.mark.slow
def test_the_operations_of_training_match_a_calculation_by_hand() -> None:
    assert compare.operations(224) == pytest.approx(2.848e9, rel=0.01)
    assert compare.operations(96) == pytest.approx(0.528e9, rel=0.01)


def test_ratios_are_taken_round_by_round(tmp_path: Path) -> None:
    def found(factor: float) -> dict[tuple[str, str], dict[str, float]]:
        return {
            run: {"images_per_second": factor * (n + 1), "peak_memory_bytes": 2.0**30}
            for n, run in enumerate(compare.RUNS)
        }

    ceilings = {"fp32": 1e12, "bf16": 2e12}
    rows = compare.table([found(100), found(300), found(200)], ceilings, 96)
    ours = next(row for row in rows if row[:2] == ["ours", "bf16"])
    assert ours[2:5] == ["1400.0", "7.00", "7.00–7.00"]  # drift of the machine does not widen the range of the ratio
    assert ours[5] == f"{1400 * compare.operations(96) / 2e12:.0%}"
    assert compare.overhead([found(1)], "bf16").startswith("Lightning's share, bf16: -14.3%")
    text = compare.write(tmp_path, "loops", compare.COLUMNS, rows, ["a note"])
    assert (tmp_path / "loops.md").read_text() == text
    with open(tmp_path / "loops.csv", newline="") as file:
        assert list(csv.reader(file)) == [list(compare.COLUMNS), *rows]
    compare.bars(tmp_path / "loops.png", rows, "images/s")
    assert (tmp_path / "loops.png").stat().st_size > 5000


@pytest.mark.slow
def test_the_gpu_benchmark_says_that_there_is_no_gpu() -> None:
    command, env = [sys.executable, "-m", "benchmarks.gpu"], os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
