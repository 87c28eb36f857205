"""Fashion-MNIST, and sets like it."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from vggexp.data import idx
from vggexp.data.source import Images, Source, Split


@dataclass(kw_only=True)
class FashionMNIST(Source):
    """Fashion-MNIST (Xiao et al. 2017); a subclass with its own `spec` is another set in four IDX files."""

    spec: ClassVar[idx.IDXSet] = idx.FASHION_MNIST

    @property
    def classes(self) -> tuple[str, ...]:
        return self.spec.classes

    @property
    def channels(self) -> int:
        return 1

    def load(self, split: Split) -> Images | None:
        if split == "val":
            return None
        names = (idx.TRAIN_IMAGES, idx.TRAIN_LABELS) if split == "train" else (idx.TEST_IMAGES, idx.TEST_LABELS)
        files = idx.obtain(self.spec, self.root, self.cache_dir, names=names)
        pixels, labels = (torch.from_numpy(idx.parse(files[name]).copy()) for name in names)
        return Images(pixels.unsqueeze(1), labels.long(), {name: self.spec.sha256[name] for name in names})
