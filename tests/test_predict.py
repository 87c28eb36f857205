"""`vggexp predict` shows the network a file in the form of the data set's images."""

import csv
import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import Run, refusal, vggexp
from synthetic import FILES, encode
from vggexp.data import idx
from vggexp.data import pictures as images
from vggexp.data.resize import resize
from vggexp.inference import load as networks
from vggexp.inference.predict import predict

PIXELS = idx.parse(FILES[idx.TEST_IMAGES])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten test images as PNG files."""
    where = tmp_path_factory.mktemp("pictures")
    for n in range(10):
        Image.fromarray(PIXELS[n]).save(where / f"{n}.png")
    return where


def read(*paths: Path, invert: bool = False) -> np.ndarray:
    refused: list[tuple[Path, str]] = []
    found = [image for _, image in images.read(paths, invert, lambda *fault: refused.append(fault))]
    assert refused == []
    return np.stack(found)


def by_hand(run: Run, pixels: np.ndarray) -> torch.Tensor:
    found = networks.load(str(run.folder), {"allowed_packages": ["synthetic"]})
    with torch.inference_mode():
        return found.module(resize(torch.from_numpy(pixels.copy()), 32).unsqueeze(1).float().div(255)).softmax(1)


@pytest.mark.slow
def test_the_command_gives_the_networks_probabilities_for_files_and_idx(
    trained: Run, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "some.bin").write_bytes(gzip.compress(encode(PIXELS[10:13])))
    done = vggexp(
        *("predict", f"run={trained.folder}", f"input={folder},{tmp_path}/some.bin", "output=out.csv", "batch_size=4"),
        "allowed_packages=[synthetic]",
        cwd=tmp_path,
    )
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "")
    with open(tmp_path / "out.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    names = [str(folder / f"{n}.png") for n in range(10)] + [f"{tmp_path}/some.bin[{n}]" for n in range(3)]
    assert [row["file"] for row in rows] == names
    expected = by_hand(trained, PIXELS[:13])
    found = torch.tensor([[float(row[f"bar {n}"]) for n in range(10)] for row in rows])
    assert torch.allclose(found, expected, atol=1e-6)
    assert [row["class"] for row in rows] == [f"bar {n}" for n in expected.argmax(1)]
    assert [float(row["probability"]) for row in rows] == pytest.approx(expected.max(1).values.tolist(), abs=1e-6)


@pytest.mark.slow
def test_files_that_cannot_be_read_are_named_and_left_out(trained: Run, folder: Path, tmp_path: Path) -> None:
    whole = (folder / "0.png").read_bytes()
    (tmp_path / "a.png").write_bytes(whole)
    (tmp_path / "b-empty.png").touch()
    (tmp_path / "c-torn.png").write_bytes(whole[:200])
    (tmp_path / "d-text.jpg").write_text("no picture")
    (tmp_path / "e.png").write_bytes(whole)
    (tmp_path / "f-torn.png").write_bytes(gzip.compress(encode(PIXELS[:3]))[:-700])
    done = vggexp(
        *("predict", f"run={trained.folder}", f"input={tmp_path}", "format=json", "allowed_packages=[synthetic]")
    )
    assert done.returncode == 1
    answers = json.loads(done.stdout)
    assert [Path(answer["file"]).name for answer in answers] == ["a.png", "e.png"]
    assert sum(answers[0]["probabilities"].values()) == pytest.approx(1)
    lines = done.stderr.splitlines()
    for line, name in zip(lines, ["b-empty.png", "c-torn.png", "d-text.jpg", "f-torn.png"], strict=False):
        assert line.startswith(f"vggexp: {tmp_path / name}: ")
    assert lines[4:] == ["vggexp: 4 of 6 files could not be read"]


@pytest.mark.slow
def test_the_table_names_the_three_most_probable_classes(trained: Run, folder: Path) -> None:
    done = vggexp("predict", f"run={trained.folder}", f"input={folder}/[01].png", "allowed_packages=[synthetic]")
    lines = [line for line in done.stdout.splitlines() if ".png" in line]
    assert len(lines) == 2
    for line, row in zip(lines, by_hand(trained, PIXELS[:2]), strict=True):
        for n, value in zip(*reversed(row.topk(3)), strict=True):
            assert f"bar {n}" in line
            assert f"{value:.1%}" in line


def test_pictures_in_the_data_sets_format_are_not_changed(folder: Path) -> None:
    assert np.array_equal(read(*(folder / f"{n}.png" for n in range(10))), PIXELS[:10])


def test_dark_on_light_is_inverted_on_request(tmp_path: Path) -> None:
    Image.fromarray(255 - PIXELS[0]).save(tmp_path / "dark.png")
    assert np.array_equal(read(tmp_path / "dark.png", invert=True)[0], PIXELS[0])
    assert np.array_equal(read(tmp_path / "dark.png")[0], 255 - PIXELS[0])


def test_colors_become_luma(tmp_path: Path) -> None:
    for name, color, luma in (("r", (255, 0, 0), 76), ("g", (0, 255, 0), 150), ("b", (0, 0, 255), 29)):
        Image.new("RGB", (28, 28), color).save(tmp_path / f"{name}.png")
        assert set(read(tmp_path / f"{name}.png").flat) == {luma}


@pytest.mark.parametrize("invert", [False, True])
def test_transparent_areas_and_padding_become_black(invert: bool, tmp_path: Path) -> None:
    wide = Image.new("RGBA", (400, 100), (255, 255, 255, 0))
    wide.paste((0, 0, 0, 255) if invert else (255, 255, 255, 255), (0, 0, 200, 100))
    wide.save(tmp_path / "wide.png")
    (seen,) = read(tmp_path / "wide.png", invert=invert)
    assert seen.shape == (28, 28)
    assert seen[14, 3] == 255
    assert [seen[14, 24], seen[3, 3], seen[25, 3]] == [0, 0, 0]


def test_sixteen_bits_rotation_tags_and_large_jpegs_are_read_correctly(tmp_path: Path) -> None:
    Image.fromarray(PIXELS[0].astype(np.uint16) * 257).save(tmp_path / "deep.png")
    assert np.array_equal(read(tmp_path / "deep.png")[0], PIXELS[0])
    left = np.zeros((300, 300), dtype=np.uint8)
    left[:, :150] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90° clockwise for display
    Image.fromarray(left).save(tmp_path / "turned.jpg", exif=exif)
    (seen,) = read(tmp_path / "turned.jpg")
    assert seen[:12].min() > 200
    assert seen[16:].max() < 50


def test_pictures_are_read_one_batch_at_a_time(trained: Run) -> None:
    taken = 0

    def stream() -> Iterator[tuple[str, np.ndarray]]:
        nonlocal taken
        for n in range(1000):
            taken += 1
            yield str(n), PIXELS[n % 100]

    found = networks.load(str(trained.folder), {"allowed_packages": ["synthetic"]})
    answers = predict(found, stream(), batch_size=8, device=torch.device("cpu"))
    next(answers)
    assert taken == 8
    assert len(list(answers)) == 999


def test_invalid_inputs_are_named(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no picture")
    assert f"input={tmp_path}: holds no .png" in refusal(lambda: images.files(str(tmp_path)))
    assert "no such file" in refusal(lambda: images.files("nowhere.png"))
    (tmp_path / "a,b.png").touch()
    assert images.files(str(tmp_path / "a,b.png")) == [tmp_path / "a,b.png"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("format=xml", "format=xml: must be"),
        ("batch_size=0", "batch_size=0: must be"),
        ("device=tpu", "device=tpu: must"),
    ],
)
def test_a_wrong_option_gives_one_line(option: str, words: str, tmp_path: Path) -> None:
    done = vggexp("predict", "run=last", "input=x", option, cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert words in done.stderr
