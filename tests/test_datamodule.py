"""Splits, order and batches."""

import os

import numpy as np
import pytest
import torch
from torch import Tensor

from synthetic import TEST, TRAIN, SyntheticMNIST
from vggexp.data.datamodule import Batches, split
from vggexp.data.resize import resize
from vggexp.errors import UserError


def module(**options: object) -> SyntheticMNIST:
    data = SyntheticMNIST(**{"root": os.environ["VGGEXP_TEST_ROOT"], "val_size": 100, "resize": 32} | options)
    data.prepare_data()
    data.setup()
    return data


def order(size: int = 1000, epoch: int = 0, **options: int) -> list[int]:
    batches = Batches(torch.arange(size), 64, **{"seed": 0, **options})
    batches.set_epoch(epoch)
    return torch.cat(list(batches)).tolist()


def test_order_is_a_function_of_seed_and_epoch() -> None:
    assert order() == order()
    assert sorted(order()) == list(range(1000))
    assert len({tuple(order(seed=seed, epoch=epoch)) for seed in range(5) for epoch in range(5)}) == 25


@pytest.mark.parametrize("workers", [1, 2])
def test_order_is_the_same_for_any_number_of_workers(workers: int) -> None:
    alone, helped = module().train_dataloader(), module(num_workers=workers).train_dataloader()
    for epoch in range(2):
        for loader in (alone, helped):
            loader.sampler.set_epoch(epoch)
        for (images, labels), (same_images, same_labels) in zip(alone, helped, strict=True):
            assert torch.equal(images, same_images)
            assert torch.equal(labels, same_labels)


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_processes_share_each_global_batch(world_size: int) -> None:
    alone = list(Batches(torch.arange(1000), 64, seed=0))
    ranks = [list(Batches(torch.arange(1000), 64, seed=0, rank=r, world_size=world_size)) for r in range(world_size)]
    for batch, *shares in zip(alone, *ranks, strict=True):
        assert sorted(torch.cat(shares).tolist()) == sorted(batch.tolist())


def test_split_is_stratified_disjoint_and_fixed_by_the_seed() -> None:
    labels = torch.arange(1000) % 10
    stay, taken = split(labels, 100, seed=3)
    assert torch.bincount(labels[taken]).tolist() == [10] * 10
    assert sorted([*stay.tolist(), *taken.tolist()]) == list(range(1000))
    assert torch.equal(taken, split(labels, 100, seed=3)[1])
    assert not torch.equal(taken, split(labels, 100, seed=4)[1])


@pytest.mark.parametrize("size", [0, 1, 7, 333, 999])
def test_split_takes_exactly_as_many_as_asked(size: int) -> None:
    labels = torch.from_numpy(np.random.default_rng(0).integers(0, 7, 1000))
    stay, taken = split(labels, size, seed=0)
    assert (len(stay), len(taken)) == (1000 - size, size)
    share = torch.bincount(labels[taken], minlength=7) - torch.bincount(labels) * size / 1000
    assert share.abs().max() < 1


def test_stages_have_their_images_and_the_test_set_is_whole() -> None:
    data = module()

    def labels(stage: str) -> Tensor:
        return torch.cat([batch[1] for batch in data.loader(stage)])

    assert [len(labels(stage)) for stage in ("train", "val", "test")] == [TRAIN - 100, 100, TEST]
    assert torch.equal(labels("test"), data.sets["test"].tensors[1])
    assert not set(data.indices["train"].tolist()) & set(data.indices["val"].tolist())


def test_batches_are_resized_pixels_between_0_and_1() -> None:
    data = module(resize=45)
    images, labels = next(iter(data.val_dataloader()[0]))
    assert images.dtype == torch.uint8
    ready, same = data.on_after_batch_transfer((images, labels), 0)
    assert (ready.shape, ready.dtype) == ((100, 1, 45, 45), torch.float32)
    assert torch.equal(ready[:, 0], resize(images, 45).float() / 255)
    assert torch.equal(labels, same)


def test_the_images_are_held_once_as_bytes() -> None:
    data = module()
    assert data.sets["train"] is data.sets["val"]
    assert data.sets["train"].tensors[0].dtype == torch.uint8


def test_train_size_takes_a_stratified_part_of_the_rest() -> None:
    data = module(train_size=50)
    assert torch.bincount(data.sets["train"].tensors[1][data.indices["train"]]).tolist() == [5] * 10
    assert not set(data.indices["train"].tolist()) & set(data.indices["val"].tolist())


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"val_size": TRAIN}, "data.val_size=400"),
        ({"train_size": 301}, "data.train_size=301"),
        ({"test_each_epoch": True}, "data.val_size=0"),
    ],
)
def test_sizes_that_do_not_fit_are_named(options: dict[str, object], key: str) -> None:
    with pytest.raises(UserError, match=key):
        module(**options)
