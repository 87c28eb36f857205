"""A folder of pictures becomes a data set, whose pixels the cache keeps."""

import errno
import json
import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image, ImageOps

from conftest import refusal
from processes import PATIENCE
from vggexp.data import pictures, store
from vggexp.data.folder import Folder
from vggexp.data.source import Images, digest
from vggexp.data.store import LINES, PIXELS
from vggexp.errors import UserError
from vggexp.system import files

SHADES = np.random.default_rng(0).integers(0, 256, (20, 28, 28), np.uint8)
BILINEAR = Image.Resampling.BILINEAR
Opener = Callable[..., Folder]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Twenty gray 28×28 pictures in two classes, with numbers as names, in train/."""
    for n, shades in enumerate(SHADES):
        save(Image.fromarray(shades), tmp_path / "set" / "train" / "ba"[n % 2] / f"{n:02}.png")
    return tmp_path / "set"


@pytest.fixture
def opened(root: Path, tmp_path: Path) -> Opener:
    """Makes the source."""

    def call(**options: Any) -> Folder:
        return Folder(
            **({"root": str(root), "cache_dir": str(tmp_path / "cache"), "channels": 1, "size": 64} | options)
        )

    return call


@pytest.fixture
def decodes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are decoded from now on."""
    names: list[str] = []
    real = pictures.decoded
    monkeypatch.setattr(
        pictures, "decoded", lambda file, *rest: (names.append(Path(file.name).name), real(file, *rest))[1]
    )
    return names


def save(picture: Image.Image, path: Path, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, **options)
    return path


def train(source: Folder) -> Images:
    images = source.load("train")
    assert images is not None
    return images


def kept(tmp_path: Path) -> Path:
    """The folder of the only store."""
    (folder,) = (tmp_path / "cache" / "pictures").iterdir()
    return folder


def lines_of(folder: Path) -> Path:
    """The file of lines of the only store in a folder."""
    (lines,) = folder.glob(f"*{LINES}")
    return lines


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8))


def only(folder: Path, picture: Image.Image, name: str, cache: Path, **options: Any) -> np.ndarray:
    """A picture as a set of one, (C, H, W)."""
    saved = {key: options.pop(key) for key in ("exif", "quality", "transparency") if key in options}
    save(picture, folder / "a" / name, **saved)
    return train(Folder(root=str(folder), cache_dir=str(cache), **options)).pixels[0].numpy()


@pytest.mark.linux
def test_an_exported_set_gives_back_its_pixels_and_its_order(opened: Opener, root: Path, tmp_path: Path) -> None:
    source = opened()
    images = train(source)
    assert (source.classes, source.channels, images.mapped) == (("a", "b"), 1, True)
    assert np.array_equal(images.pixels[:, 0].numpy(), SHADES)
    assert images.labels.tolist() == [1, 0] * 10
    assert images.labels.dtype == images.digests.dtype == torch.int64
    assert images.files[:2] == ["train/b/00.png", "train/a/01.png"]
    assert images.digests.tolist() == [digest(shades.tobytes()) for shades in SHADES]
    assert list(images.hashes) == ["set/train"]
    assert (source.load("val"), source.load("test")) == (None, None)
    assert kept(tmp_path).name.startswith("set-")
    shared = [line for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(".pixels")]
    assert shared
    assert all(" r--s " in line for line in shared)  # memory of the file, not of the process


def test_equal_names_are_ordered_by_class_and_pictures_lie_at_any_depth(tmp_path: Path) -> None:
    for name in ("b/1.png", "a/z/1.png", "a/0/2.png", "a.b/1.png", "a/3.PNG"):
        save(Image.new("L", (4, 4)), tmp_path / "set" / name)
    (tmp_path / "set" / "a" / "notes.txt").touch()
    save(Image.new("L", (4, 4)), tmp_path / "set" / "a" / ".hidden.png")
    save(Image.new("L", (4, 4)), tmp_path / "set" / ".trash" / "1.png")
    source = Folder(root=str(tmp_path / "set"), cache_dir=str(tmp_path), size=4)
    assert source.classes == ("a", "a.b", "b")
    assert train(source).files == ["a/z/1.png", "a.b/1.png", "b/1.png", "a/0/2.png", "a/3.PNG"]


def test_colors_alpha_palettes_orientation_and_depth(tmp_path: Path) -> None:
    cache, size = tmp_path / "cache", {"size": 28}
    picture = noise(28, 28)
    planes = np.asarray(picture).transpose(2, 0, 1)
    assert np.array_equal(only(tmp_path / "rgb", picture, "a.png", cache, **size), planes)
    gray = only(tmp_path / "rgb", picture, "a.png", cache, channels=1, **size)
    assert np.array_equal(gray[0], np.asarray(picture.convert("L")))
    clear = picture.copy()
    clear.putalpha(Image.fromarray(np.where(np.arange(28 * 28).reshape(28, 28) % 2, 255, 0).astype(np.uint8)))
    seen = only(tmp_path / "rgba", clear, "a.png", cache, **size)
    assert np.array_equal(seen, np.where(np.arange(28 * 28).reshape(28, 28) % 2, planes, 0))
    palette = picture.quantize(16)
    seen = only(tmp_path / "p", palette, "a.png", cache, **size)
    assert np.array_equal(seen, np.asarray(palette.convert("RGB")).transpose(2, 0, 1))
    hidden = only(tmp_path / "tp", palette, "a.png", cache, transparency=palette.getpixel((0, 0)), **size)
    assert hidden[:, 0, 0].tolist() == [0, 0, 0]
    deep = only(tmp_path / "deep", Image.fromarray(SHADES[0].astype(np.uint16) * 257), "a.png", cache, **size)
    assert np.array_equal(deep, np.stack([SHADES[0]] * 3))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = only(tmp_path / "jpg", picture, "a.jpg", cache, exif=exif, quality=95, **size)
    upright = Image.open(tmp_path / "jpg" / "a" / "a.jpg").transpose(Image.Transpose.ROTATE_270)
    assert np.array_equal(turned, np.asarray(upright).transpose(2, 0, 1))


def by_pillow(picture: Image.Image, fit: str) -> Image.Image:
    width, height = picture.size
    if fit == "crop":
        side = min(width, height)
        picture = picture.crop(((width - side) // 2, (height - side) // 2, (width + side) // 2, (height + side) // 2))
        assert picture.size == (side, side)
    if fit == "pad":
        picture = ImageOps.pad(picture, (max(width, height),) * 2)
    return picture.resize((16, 16), BILINEAR)


@pytest.mark.parametrize("fit", ["stretch", "crop", "pad"])
@pytest.mark.parametrize("option", ["size", "store_size"])
def test_pictures_of_several_sizes_become_squares_as_pillow_makes_them(fit: str, option: str, tmp_path: Path) -> None:
    made = [noise(40, 21), noise(9, 18), noise(16, 16), noise(50, 50)]
    for n, picture in enumerate(made):
        save(picture, tmp_path / "set" / "a" / f"{n}.png")
    options = {"size": 99} | {option: 16}
    images = train(Folder(root=str(tmp_path / "set"), cache_dir=str(tmp_path / "cache"), fit=fit, **options))
    expected = np.stack([np.asarray(by_pillow(picture, fit)).transpose(2, 0, 1) for picture in made])
    assert np.array_equal(images.pixels.numpy(), expected)


def test_pictures_of_one_square_size_are_kept_unless_they_are_larger(opened: Opener, root: Path) -> None:
    assert train(opened(size=28)).pixels.shape[-1] == 28
    assert train(opened(size=27)).pixels.shape[-1] == 27
    assert train(opened(size=0)).pixels.shape[-1] == 28
    save(Image.new("L", (30, 30)), root / "train" / "a" / "00.png")
    assert train(opened()).pixels.shape == (21, 1, 64, 64)
    assert "data.store_size: missing; the pictures differ in size (28×28, 30×30" in refusal(
        lambda: opened(size=0).load("train")
    )
    (root / "train" / "a" / "00.png").unlink()
    assert np.array_equal(train(opened()).pixels[:, 0].numpy(), SHADES)  # whatever the store was before


def test_what_has_not_changed_is_not_decoded_again(opened: Opener, root: Path, decodes: list[str]) -> None:
    before = train(opened())
    assert sorted(decodes) == [f"{n:02}.png" for n in range(20)]
    decodes.clear()
    again = train(opened())
    assert (decodes, dict(again.hashes)) == ([], dict(before.hashes))
    save(Image.fromarray(255 - SHADES[4]), root / "train" / "b" / "04.png")
    os.utime(root / "train" / "b" / "04.png", ns=(1, 1))
    save(Image.fromarray(SHADES[0]), root / "train" / "c" / "001.png")
    (root / "train" / "a" / "19.png").unlink()
    after = train(opened())
    assert sorted(decodes) == ["001.png", "04.png"]
    expected = np.stack([SHADES[0], SHADES[0], *SHADES[1:4], 255 - SHADES[4], *SHADES[5:19]])
    assert np.array_equal(after.pixels[:, 0].numpy(), expected)
    assert after.labels.tolist()[:4] == [1, 2, 0, 1]
    assert np.array_equal(before.pixels[:, 0].numpy(), SHADES)  # which still maps the file that there was
    assert after.hashes != before.hashes


def in_a_fork(call: Callable[[], object]) -> multiprocessing.process.BaseProcess:
    process = multiprocessing.get_context("fork").Process(target=call)
    process.start()
    return process


@pytest.mark.linux
def test_a_build_that_is_killed_is_continued(
    opened: Opener, tmp_path: Path, decodes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "MOST", 4)

    def killed() -> None:
        fsync, synced = os.fsync, []

        def kill(descriptor: int) -> None:
            synced.append(fsync(descriptor))
            if len(synced) == 9:  # two for the first line; pixels and lines of three chunks, then pixels alone
                os.kill(os.getpid(), signal.SIGKILL)

        monkeypatch.setattr(os, "fsync", kill)
        opened().load("train")

    child = in_a_fork(killed)
    child.join(PATIENCE)
    assert child.exitcode == -signal.SIGKILL
    lines = lines_of(kept(tmp_path))
    assert len(lines.read_text().splitlines()) == 1 + 12
    (pixels,) = kept(tmp_path).glob("*.pixels")
    assert pixels.stat().st_size == 16 * 28**2
    with open(lines, "a") as file:
        file.write('["b/12.png", 7')
    images = train(opened())
    assert sorted(decodes) == [f"{n:02}.png" for n in range(12, 20)]
    assert np.array_equal(images.pixels[:, 0].numpy(), SHADES)
    assert {path.name for path in kept(tmp_path).iterdir()} - {".lock"} == {lines.name, pixels.name}


def test_half_a_build_of_files_that_have_changed_since_is_used_as_far_as_it_goes(
    opened: Opener, root: Path, tmp_path: Path, decodes: list[str]
) -> None:
    train(opened())
    lines = lines_of(kept(tmp_path))
    lines.write_text("".join(lines.read_text().splitlines(keepends=True)[:11]))
    decodes.clear()
    (root / "train" / "b" / "00.png").unlink()
    save(Image.fromarray(SHADES[0]), root / "train" / "a" / "001.png")
    assert np.array_equal(train(opened()).pixels[:, 0].numpy(), SHADES)
    assert sorted(decodes) == ["001.png", *(f"{n}.png" for n in range(10, 20))]
    assert lines_of(kept(tmp_path)) != lines
    assert len(list(kept(tmp_path).glob(f"*{PIXELS}"))) == 1


def test_two_processes_build_once(opened: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = pictures.decoded

    def slow(file: Any, *rest: Any) -> np.ndarray:
        with open(tmp_path / "decodes", "a") as log:
            log.write(".")
        time.sleep(0.01)
        return real(file, *rest)

    monkeypatch.setattr(pictures, "decoded", slow)
    children = [in_a_fork(lambda: opened().load("train")) for _ in range(2)]
    for child in children:
        child.join(PATIENCE)
    assert [child.exitcode for child in children] == [0, 0]
    assert (tmp_path / "decodes").read_text() == "." * 20


def test_a_process_that_waits_says_so(opened: Opener, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train(opened())
    folder, found = kept(tmp_path), []
    lines_of(folder).unlink()
    with FileLock(folder / ".lock"):
        waiting = threading.Thread(target=lambda: found.append(train(opened())))
        waiting.start()
        end = time.monotonic() + PATIENCE
        while "waiting for another process" not in caplog.text:
            assert time.monotonic() < end
            time.sleep(0.01)
        assert not found
    waiting.join(PATIENCE)
    assert len(found) == 1


@pytest.mark.linux
@pytest.mark.parametrize("damage", ["nothing", "json", "row", "deep", "side", "link", "short", "missing"])
def test_a_damaged_store_is_built_again(damage: str, opened: Opener, tmp_path: Path, decodes: list[str]) -> None:
    train(opened())
    decodes.clear()
    path = lines_of(kept(tmp_path))
    (pixels,) = kept(tmp_path).glob("*.pixels")
    lines, content = path.read_text().splitlines(), pixels.read_bytes()
    if damage == "json":
        lines[3] = lines[3][:-5]
    if damage == "row":
        lines[3] = json.dumps([*json.loads(lines[3])[:5], 2**63, ""])
    if damage == "deep":
        lines[0] = "[" * 10**5
    if damage == "side":
        lines[0] = str(2**40)
    path.write_text("\n".join(lines) + "\n")
    if damage == "link":
        pixels.rename(tmp_path / "elsewhere")
        pixels.symlink_to(tmp_path / "elsewhere")
    if damage == "short":
        pixels.write_bytes(content[:-1])
    if damage == "missing":
        pixels.unlink()
    assert np.array_equal(train(opened()).pixels[:, 0].numpy(), SHADES)
    assert len(decodes) == (0 if damage == "nothing" else 20)
    if damage == "link":
        assert (tmp_path / "elsewhere").read_bytes() == content


def test_only_full_verification_notices_contents(
    opened: Opener, root: Path, tmp_path: Path, decodes: list[str]
) -> None:
    train(opened(verify="full"))
    path = root / "train" / "b" / "02.png"
    status, content = path.stat(), path.read_bytes()
    for shade in range(256):  # a picture of as many bytes
        save(Image.fromarray(np.roll(SHADES[2], shade + 1, 0)), path)
        if path.stat().st_size == len(content):
            break
    assert path.stat().st_size == len(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    decodes.clear()
    assert np.array_equal(train(opened()).pixels[:, 0].numpy(), SHADES)
    assert not decodes
    assert np.array_equal(train(opened(verify="full")).pixels[2, 0].numpy(), np.roll(SHADES[2], shade + 1, 0))
    assert decodes == ["02.png"]
    (pixels,) = kept(tmp_path).glob("*.pixels")
    pixels.write_bytes(bytes(28**2) + pixels.read_bytes()[28**2 :])
    assert np.array_equal(train(opened(verify="full")).pixels[0, 0].numpy(), SHADES[0])
    assert decodes == ["02.png", "00.png"]


@pytest.mark.linux
def test_files_that_cannot_be_read_are_counted_or_left_out(
    opened: Opener, root: Path, decodes: list[str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "train" / "a" / "05.png").write_bytes((root / "train" / "a" / "05.png").read_bytes()[:200])
    (root / "train" / "b" / "06.png").write_text("no picture")
    (root / "train" / "b" / "07\x1b.jpg").symlink_to("nothing.jpg")
    os.mkfifo(root / "train" / "b" / "08.jpg")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    save(Image.new("L", (60, 60)), root / "train" / "a" / "09.png")
    said = refusal(lambda: opened().load("train"))
    assert f"data.root={root}: 5 of 22 files cannot be read, the first is a/05.png (" in said
    assert said.endswith("); remove them or set data.skip_bad=true")
    decodes.clear()
    images = train(opened(skip_bad=True))
    assert set(decodes) <= {"05.png", "06.png", "09.png"}  # the others are stored
    good = [n for n in range(20) if n not in (5, 6, 9)]
    assert np.array_equal(images.pixels[:, 0].numpy(), SHADES[good])
    lines = [record.message for record in caplog.records]
    assert lines == ["5 of 22 files cannot be read and are left out: a/05.png, b/06.png, b/07\\x1b.jpg, …"]
    save(Image.fromarray(SHADES[5]), root / "train" / "a" / "05.png")
    decodes.clear()
    assert len(train(opened(skip_bad=True)).files) == 18


def test_a_file_that_can_be_read_again_comes_back(opened: Opener, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(pictures, "decoded", lambda *_: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
        assert "20 of 20 files cannot be read" in refusal(lambda: opened(skip_bad=True).load("train"))
    assert np.array_equal(train(opened(skip_bad=True)).pixels[:, 0].numpy(), SHADES)


def test_empty_classes_and_classes_of_one_image_are_named(
    opened: Opener, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (root / "train" / "nothing").mkdir()
    save(Image.fromarray(SHADES[0]), root / "train" / "single" / "x.png")
    source = opened()
    assert train(source).labels.max() == source.classes.index("single") == 3
    assert [record.message for record in caplog.records] == [
        f"data.root={root}: 1 classes have no picture: nothing",
        f"data.root={root}: 1 classes have one picture only: single",
    ]


def test_val_and_test_have_the_classes_of_train(opened: Opener, root: Path, caplog: pytest.LogCaptureFixture) -> None:
    save(Image.fromarray(SHADES[3]), root / "val" / "b" / "x.png")
    (root / "test").mkdir()
    images = opened().load("val")
    assert images is not None
    assert (images.labels.tolist(), images.files, list(images.hashes)) == ([1], ["val/b/x.png"], ["set/val"])
    assert opened().load("test") is None
    assert "test/ holds no pictures in folders of classes, and is not used" in caplog.text
    save(Image.fromarray(SHADES[3]), root / "test" / "c" / "x.png")
    assert "train/ lacks c, a class of test/" in refusal(lambda: opened().load("test"))


@pytest.mark.linux
def test_links_to_folders_are_not_followed_and_links_to_files_are(opened: Opener, root: Path, tmp_path: Path) -> None:
    (root / "train" / "a" / "loop").symlink_to(root)
    (root / "train" / "linked").symlink_to(root / "train" / "a")
    (root / "train" / "b" / "99.png").symlink_to(root / "train" / "b" / "00.png")
    (tmp_path / "link").symlink_to(root)
    source = opened(root=str(tmp_path / "link"))
    assert source.classes == ("a", "b")
    assert np.array_equal(train(source).pixels[:, 0].numpy(), np.concatenate([SHADES, SHADES[:1]]))


def test_roots_that_hold_nothing_are_named(tmp_path: Path) -> None:
    def said(root: Path | None) -> str:
        return refusal(lambda: Folder(root=root and str(root), cache_dir=str(tmp_path / "cache"), size=8).load("train"))

    assert said(None).startswith("data.root: missing; name a folder that holds train/CLASS")
    assert f"data.root={tmp_path}/nowhere: no such folder; " in said(tmp_path / "nowhere")
    (tmp_path / "empty" / ".git").mkdir(parents=True)
    assert f"data.root={tmp_path}/empty: holds no folders of classes; " in said(tmp_path / "empty")
    (tmp_path / "empty" / "a").mkdir()
    assert f"data.root={tmp_path}/empty: holds no pictures in its classes; " in said(tmp_path / "empty")
    (tmp_path / "half" / "val" / "a").mkdir(parents=True)
    assert f"data.root={tmp_path}/half: holds val, but not train/; " in said(tmp_path / "half")
    assert not (tmp_path / "cache").exists()


def test_a_cache_that_cannot_be_written_is_named_and_one_that_is_complete_is_only_read(
    opened: Opener, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    assert f"data.cache_dir={tmp_path}/file/pictures/set-" in refusal(
        lambda: opened(cache_dir=str(tmp_path / "file")).load("train")
    )
    train(opened())
    folder = kept(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in [folder, *folder.iterdir()]}
    monkeypatch.setattr(files, "writing", lambda *_: pytest.fail("nothing is to be written"))
    monkeypatch.setattr(store, "FileLock", lambda *_: pytest.fail("no lock is needed"))
    assert np.array_equal(train(opened()).pixels[:, 0].numpy(), SHADES)
    assert {path: path.stat().st_mtime_ns for path in [folder, *folder.iterdir()]} == before
    monkeypatch.undo()
    shutil.move(folder, tmp_path / "moved")
    folder.symlink_to(tmp_path / "moved")
    assert np.array_equal(train(opened()).pixels[:, 0].numpy(), SHADES)
    (root / "train" / "b" / "00.png").unlink()
    assert "is a link, through which nothing is written; remove it" in refusal(lambda: opened().load("train"))


def test_a_full_disk_is_one_line_and_what_was_written_is_used_later(
    opened: Opener, tmp_path: Path, decodes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "MOST", 4)
    fsync, synced = os.fsync, []

    def full(descriptor: int) -> None:
        synced.append(fsync(descriptor))
        if len(synced) > 6:
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match=r"data\.cache_dir=.*: No space left on device; name") as error:
            opened().load("train")
    assert error.value.exit_code == 1
    decodes.clear()
    assert np.array_equal(train(opened()).pixels[:, 0].numpy(), SHADES)
    assert len(decodes) == 12
