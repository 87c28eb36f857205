"""vggexp data [export=FOLDER] [sheet=FILE] [KEY=VALUE] ...

Finds or downloads the data set, verifies it, and says what is in it; trains nothing. Files are kept in the cache, if it
can be written.

  data=NAME               fashion_mnist, mnist, kmnist, cifar10, cifar100, folder, or one of your own
  data.root=FOLDER        a folder that holds the files
  data.cache_dir=FOLDER   where to keep them; default: $VGGEXP_CACHE, else the user's cache folder
  sheet=FILE              a PNG with images of each class; default: outputs/data/NAME.png
  export=FOLDER           writes all images as PNG files, FOLDER/train/CLASS/NUMBER.png, which data=folder reads

The other keys are those of vggexp train, such as data.val_size.
"""

import logging
from pathlib import Path

from vggexp.commands import options
from vggexp.config import compose
from vggexp.errors import UserError
from vggexp.runs import layout
from vggexp.system import files, paths, terminal
from vggexp.system.text import label

EXAMPLES, MOST_CLASSES = 8, 20  # on the contact sheet: images of each class, and classes


def main(args: list[str]) -> int:
    logging.basicConfig(format="%(message)s")
    export, args = options.take("export", args)
    sheet, args = options.take("sheet", args)
    cfg = compose.config(*args)
    if export is not None and (Path(export).is_file() or any(Path(export).glob("*"))):
        raise UserError(f"export={export}: is not an empty folder; name a new one")
    name, root = getattr(cfg.data, "dataset", cfg.data.target.rpartition(".")[2]), Path(cfg.data.root or "").name
    title = label(f"{name} {root}".strip())
    place = paths.outputs() / "data" / f"{title}.png" if sheet is None else Path(sheet)
    layout.check_output(place, "sheet")

    from vggexp.config.instantiate import datamodule  # here, so that a mistake is answered before torch is loaded
    from vggexp.data import survey
    from vggexp.inspection import figures

    data = datamodule(cfg)
    data.setup()
    counts = survey.counts(data)
    rows = [[name, *map("{:,}".format, row)] for name, row in zip(data.classes, counts, strict=True)]
    totals = [sum(column) for column in zip(*counts, strict=True)]
    console = terminal.console()
    console.print(terminal.table(("class", "train", "val", "test"), [*rows, ["all", *map("{:,}".format, totals)]]))

    ready = data.preparation
    labels = data.labels("train")
    chosen = survey.first_of_each(labels, min(len(data.classes), MOST_CLASSES), EXAMPLES)
    captions = [data.classes[label] for label in labels[chosen].tolist()]
    with files.writing(place.parent, f"sheet={place}"):
        figures.gallery(data.stored("train", chosen), captions, f"{title}: {totals[0]:,} training images", place)
    high, wide = ready.stored
    about = {
        "images": f"{data.source.channels}×{high}×{wide} bytes, for the network {ready.size}×{ready.size} pixels",
        "pictures": survey.kinds(data),
        "repeated": survey.repeated(data),
        "normalized by": ", ".join(f"{m:.4f} ± {s:.4f}" for m, s in zip(ready.mean, ready.std, strict=True)),
        "cache": terminal.short(paths.cache(cfg.data.cache_dir)),
        "contact sheet": terminal.short(place),
    }
    if export is not None:
        with files.writing(Path(export), f"export={export}"):
            count = survey.export(data, Path(export))
        about["exported"] = (
            f"{count:,} PNG files; data=folder {terminal.argument(Path(export), 'data.root')} reads them"
        )
    console.print(terminal.pairs({name: text for name, text in about.items() if text}))
    return 0
