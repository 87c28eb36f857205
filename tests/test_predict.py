"""`vggexp predict` shows the network a file in the form of the data set's images."""

import csv
import gzip
import io
import json
import os
import struct
import threading
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import Run, refusal, vggexp
from synthetic import FILES, encode
from vggexp.data import idx
from vggexp.data import pictures as images
from vggexp.data.resize import prepared
from vggexp.inference import load as networks
from vggexp.inference.predict import predict

PIXELS = idx.parse(FILES[idx.TEST_IMAGES])
GRAY = images.Form(1, 28, "pad")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten test images as PNG files."""
    where = tmp_path_factory.mktemp("pictures")
    for n in range(10):
        Image.fromarray(PIXELS[n]).save(where / f"{n}.png")
    return where


def read(*paths: Path, invert: bool = False) -> np.ndarray:
    refused: list[tuple[Path, str]] = []
    form = replace(GRAY, invert=invert)
    found = [image for _, image in images.read(paths, form, lambda *fault: refused.append(fault))]
    assert refused == []
    assert all(image.shape[0] == 1 for image in found)
    return np.concatenate(found)


def by_hand(run: Run, pixels: np.ndarray) -> torch.Tensor:
    found = networks.load(str(run.folder), {"allowed_packages": ["synthetic"]})
    with torch.inference_mode():
        return found.module(prepared(torch.from_numpy(pixels.copy()).unsqueeze(1), 32)).softmax(1)


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


def refusals(*paths: Path) -> tuple[list[str], dict[str, str], list[str]]:
    """The names of what was read, why the rest was not, and what was noted."""
    refused: dict[str, str] = {}
    notes: list[str] = []
    read = images.read(
        paths, GRAY, lambda path, text: refused.update({path.name: text}), lambda path, text: notes.append(text)
    )
    return [Path(name).name for name, _ in read], refused, notes


@pytest.mark.parametrize("suffix", ["webp", "tif", "bmp", "gif", "avif", "jp2", "jpg", "ppm"])
def test_what_pillow_opens_is_read(suffix: str, tmp_path: Path) -> None:
    block = np.zeros((60, 60), dtype=np.uint8)
    block[:30] = 200
    options = {"quality": 95} if suffix in ("webp", "avif", "jpg") else {}
    Image.fromarray(block).convert("RGB").save(tmp_path / f"a.{suffix}", **options)
    (tmp_path / "notes.txt").write_text("no picture")
    told: list[str] = []
    (path,) = images.files(str(tmp_path), lambda _, text: told.append(text))
    assert told == ["1 files are no pictures (1 .txt) and are left out"]
    (seen,) = read(path)
    assert abs(int(seen[5, 5]) - 200) < 8
    assert seen[22, 5] < 8


def test_of_several_frames_the_first_is_used_and_it_is_said(tmp_path: Path) -> None:
    frames = [Image.new("L", (28, 28), shade) for shade in (40, 90)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert refusals(tmp_path / "a.gif") == (["a.gif"], {}, ["has 2 frames, of which the first is used"])
    assert set(read(tmp_path / "a.gif").flat) == {40}


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_the_transparent_gray_of_a_png_is_background_at_every_depth(bits: int, tmp_path: Path) -> None:
    """Written by hand: Pillow itself writes no such file. The left half has the transparent gray, the right another."""
    clear, other = 2**bits - 1, 2 ** (bits - 1) - 1 or 0
    samples = np.repeat([[clear] * 14 + [other] * 14], 28, axis=0)
    if bits == 16:
        rows = [b"\0" + row.astype(">u2").tobytes() for row in samples]
    else:
        spread = (samples[..., None] >> np.arange(bits)[::-1]) & 1
        rows = [b"\0" + np.packbits(row.reshape(-1)).tobytes() for row in spread.astype(np.uint8)]

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 28, 28, bits, 0, 0, 0, 0))
    body = chunk(b"tRNS", struct.pack(">H", clear)) + chunk(b"IDAT", zlib.compress(b"".join(rows)))
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + body + chunk(b"IEND", b""))
    (seen,) = read(tmp_path / "a.png")
    assert set(seen[:, :13].flat) == {0}
    assert set(seen[:, 15:].flat) == {other * 255 // (2**bits - 1)}


def test_a_file_that_breaks_its_reader_does_not_stop_the_others(tmp_path: Path) -> None:
    good = Image.fromarray(PIXELS[0])
    good.save(tmp_path / "a.png")
    tags = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0) + struct.pack("<HHI4s", 0x011A, 2, 4, b"72\0\0")
    exif = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 2) + tags + bytes(4)  # a resolution that is text
    good.resize((60, 60)).save(tmp_path / "b.jpg", exif=exif)
    (tmp_path / "c.tif").write_bytes(b"II*\0" + b"\xff" * 200)
    Image.new("L", (300_000, 1), 255).save(tmp_path / "d.png")
    good.save(tmp_path / "e.png")
    named, refused, _ = refusals(*(tmp_path / name for name in ("a.png", "b.jpg", "c.tif", "d.png", "e.png")))
    assert (named, list(refused)) == (["a.png", "b.jpg", "d.png", "e.png"], ["c.tif"])


def test_broken_metadata_and_readers_that_raise_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(PIXELS[0]).save(tmp_path / "a.png")
    monkeypatch.setattr(Image.Image, "getexif", lambda self: 1 / 0)
    assert np.array_equal(read(tmp_path / "a.png")[0], PIXELS[0])
    monkeypatch.setattr(Image.Image, "convert", lambda self, mode: {}["nothing"])
    assert refusals(tmp_path / "a.png") == ([], {"a.png": "'nothing'"}, [])


@pytest.mark.linux
def test_a_pipe_is_read_once_and_patterns_go_deeper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    Image.fromarray(PIXELS[0]).save(tmp_path / "deep" / "er" / "a.png")
    (path,) = images.files(f"{tmp_path}/**/*.png")
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=lambda: (tmp_path / "pipe").write_bytes(path.read_bytes()))
    writer.start()
    assert np.array_equal(read(tmp_path / "pipe")[0], PIXELS[0])
    writer.join()
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(path.read_bytes())))
    assert images.files("-") == [Path("-")]
    assert np.array_equal(read(Path("-"))[0], PIXELS[0])


def test_a_light_border_looks_inverted() -> None:
    assert not any(map(images.looks_inverted, PIXELS[:50, None]))
    assert all(images.looks_inverted(255 - image) for image in PIXELS[:50, None])


@pytest.mark.slow
def test_predictions_never_replace_a_picture_and_any_file_name_can_be_written(
    trained: Run, folder: Path, tmp_path: Path
) -> None:
    common = (f"run={trained.folder}", "allowed_packages=[synthetic]")
    odd = tmp_path / os.fsdecode(b"caf\xe9[red].png")
    Image.fromarray(255 - PIXELS[0]).save(odd)
    refused = vggexp("predict", *common, f"input={tmp_path}", f"output={odd}")
    assert (refused.returncode, refused.stderr.count("is one of the pictures; name another file")) == (2, 1)
    assert np.array_equal(read(odd)[0], 255 - PIXELS[0])
    for form, words in (("csv", "caf\\xe9[red].png,bar"), ("table", "caf\\xe9[red].png")):
        done = vggexp("predict", *common, f"input={tmp_path}", f"format={form}", PYTHONIOENCODING="utf-8")
        assert done.returncode == 0, done.stderr
        assert words in done.stdout
        assert "has a light border; if it shows dark things on light ground, set invert=true" in done.stderr


def test_pictures_are_read_one_batch_at_a_time(trained: Run) -> None:
    taken = 0

    def stream() -> Iterator[tuple[str, np.ndarray]]:
        nonlocal taken
        for n in range(1000):
            taken += 1
            yield str(n), PIXELS[n % 100][None]

    found = networks.load(str(trained.folder), {"allowed_packages": ["synthetic"]})
    answers = predict(found, stream(), batch_size=8, device=torch.device("cpu"))
    next(answers)
    assert taken == 8
    assert len(list(answers)) == 999


def test_invalid_inputs_are_named(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no picture")
    assert f"input={tmp_path}: holds no picture" in refusal(lambda: images.files(str(tmp_path)))
    for empty in ("", " ", "a,,b", "a,"):
        assert f"input={empty}: has an empty part" in refusal(lambda empty=empty: images.files(empty)), empty
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


@pytest.mark.linux
def test_what_a_pattern_or_a_link_leads_to(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "dead.png").symlink_to(tmp_path / "nothing.png")
    assert "no such file" in refusal(lambda: images.files(f"{tmp_path}/pict*"))
    refused: list[str] = []
    found = list(images.read(images.files(f"{tmp_path}/dead.png"), GRAY, lambda path, why: refused.append(why)))
    assert (found, len(refused)) == ([], 1)


def test_floating_point_pictures_go_from_black_to_white(tmp_path: Path) -> None:
    values = np.linspace(0, 1, 28 * 28, dtype=np.float32).reshape(28, 28)
    for name, array in (("one.tif", values), ("bytes.tif", values * 255)):
        Image.fromarray(array).save(tmp_path / name)
        ((_, image),) = images.read([tmp_path / name], GRAY, lambda path, why: pytest.fail(why))
        assert np.abs(image - values * 255).max() <= 1
    Image.fromarray(np.full((28, 28), 2**20, np.int32)).save(tmp_path / "i.tif")
    ((_, image),) = images.read([tmp_path / "i.tif"], GRAY, lambda path, why: pytest.fail(why))
    assert image.min() == 255


def test_a_form_says_channels_size_and_how_pictures_become_square(tmp_path: Path) -> None:
    shades = np.random.default_rng(0).integers(0, 256, (30, 20, 3), np.uint8)
    Image.fromarray(shades).save(tmp_path / "a.png")
    (tmp_path / "idx").write_bytes(encode(PIXELS[:1]))

    def shown(name: str, form: images.Form) -> np.ndarray:
        ((_, image),) = images.read([tmp_path / name], form, lambda path, why: pytest.fail(why))
        return image

    planes = shades.transpose(2, 0, 1)
    assert np.array_equal(shown("a.png", images.Form(3, None, "pad")), planes)
    assert np.array_equal(shown("a.png", images.Form(3, None, "pad", invert=True)), 255 - planes)
    assert np.array_equal(shown("a.png", images.Form(3, 20, "crop")), planes[:, 5:25])
    padded = shown("a.png", images.Form(3, 30, "pad"))
    assert np.array_equal(padded[:, :, 5:25], planes)
    assert not padded[:, :, :5].any()
    assert not padded[:, :, 25:].any()
    assert shown("a.png", images.Form(1, 9, "stretch")).shape == (1, 9, 9)
    assert np.array_equal(shown("idx", images.Form(3, 28, "stretch")), np.stack([PIXELS[0]] * 3))


def test_a_picture_of_too_many_pixels_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, side in (("a.png", 50), ("b.png", 20)):
        Image.new("L", (side, side)).save(tmp_path / name)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    named, refused, _ = refusals(tmp_path / "a.png", tmp_path / "b.png")
    assert (named, list(refused)) == (["b.png"], ["a.png"])
    assert "2500 pixels" in refused["a.png"]
