"""The processes of a run that torchrun or SLURM has started: how they meet, who is lost, and who has the checkpoint."""

import hashlib
import os
import shlex
import socket
import threading
import time
import uuid
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from lightning.pytorch.plugins.environments import (  # type: ignore[attr-defined]
    ClusterEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from torch import distributed
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from vggexp.config.schema import Config
from vggexp.errors import UserError
from vggexp.system import files, hardware, terminal

ABSENT = 600.0  # seconds that a process waits for one that has not appeared yet, as torchrun does for a host
SILENT = 4.0  # seconds without a sign of life after which a process is lost whose connection broke
CHUNK = 2**26  # bytes of a file that are sent at once


class Peers(threading.Thread):
    """Leaves a sign of life every second in the store that all processes reach, and reads those of the others.

    No process waits for another in the store itself: nothing ends such a call while a cable is cut.
    """

    def __init__(self, environment: ClusterEnvironment, timeout: float, on_gpu: bool) -> None:
        super().__init__(name="peers", daemon=True)
        self.rank, self.world = environment.global_rank(), environment.world_size()
        self.local, self.timeout, self.on_gpu = environment.local_rank(), timeout, on_gpu
        self.command = command()
        self._address = environment.main_address
        self.is_server = self.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        options: dict[str, Any] = {"wait_for_workers": False, "multi_tenant": True, "is_master": self.is_server}
        try:
            seconds = timedelta(seconds=timeout)
            self._store = TCPStore(self._address, environment.main_port, timeout=seconds, **options)
        except RuntimeError as error:
            raise UserError(f"trainer.strategy=ddp: {self._address} does not answer for {timeout:g} s", 1) from error
        self._name = uuid.uuid4().hex  # of this process; an earlier one of the same rank had another
        self._waits, self._token = False, ""
        self._signs: dict[int, list[str]] = {}  # the last of each process: name, host, whether it waits, count
        self._changed: dict[int, float] = {}
        self._began = self._answered = time.monotonic()
        self._met, self._ended = threading.Event(), threading.Event()

    @classmethod
    def of(cls, cfg: Config) -> Self | None:
        """The processes of this run; None where they are one, or Lightning starts them itself, on one host."""
        if cfg.trainer.strategy != "ddp":
            return None
        with warnings.catch_warnings(action="ignore"):  # that SLURM is installed, but did not start this process
            found = next((kind for kind in (TorchElasticEnvironment, SLURMEnvironment) if kind.detect()), None)
        if found is None or (environment := found()).world_size() == 1:
            return None
        peers = cls(environment, cfg.trainer.timeout, hardware.device(cfg.trainer.accelerator).type == "cuda")
        peers.start()
        several = int(os.environ.get("GROUP_WORLD_SIZE", 1)) > 1 and "c10d" in (peers.command or "")
        if several and not peers.rank and not peers.is_server:
            advice = "so that a host that returns can join, export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 on each host"
            terminal.say(f"torchrun: {advice}, before torchrun is started", stderr=True)
        return peers

    def run(self) -> None:
        keys, count = {rank: f"vggexp/{rank}" for rank in range(self.world)}, 0
        try:
            while not self._ended.wait(0.2 if self._waits and not self._met.is_set() else 1):
                count += 1
                sign = " ".join([self._name, socket.gethostname(), str(self._waits and not self._token), str(count)])
                self._store.set(keys[self.rank], sign)
                known = [rank for rank in keys if self._met.is_set() or self._store.check([keys[rank]])]
                values = self._store.multi_get([keys[rank] for rank in known])
                self._answered = time.monotonic()
                for rank, value in zip(known, values, strict=True):
                    before, now = self._signs.get(rank), value.decode().split()
                    if before and self._met.is_set() and now[0] != before[0]:
                        continue  # the process that this one has met is gone, and its host has started another
                    self._signs[rank] = now
                    if before and now != before:  # not what a process of an earlier attempt has left
                        self._changed[rank] = self._answered
                if self._waits and not self._met.is_set():
                    self._agree()
        except RuntimeError:  # the store is gone, which `lost` will tell by the time of its last answer
            self._ended.set()

    def _agree(self) -> None:
        """The first process names a part of the store that no earlier attempt has used, once all others wait."""
        others = range(1, self.world)
        if self.rank == 0 and all(rank in self._changed and self._signs[rank][2] == "True" for rank in others):
            self._token = self._name
            for rank in others:
                self._store.set(f"vggexp/{self._signs[rank][0]}", self._token)
        elif self.rank and self._store.check([own := f"vggexp/{self._name}"]):
            self._token = self._store.get(own).decode()
        if self._token:
            self._met.set()

    def meet(self) -> None:
        """Waits, however long another process prepares its data, and then makes the process group."""
        self._began, self._waits = time.monotonic(), True
        while not self._met.wait(0.2):
            if lost := self.lost(self.timeout):
                raise UserError(f"trainer.strategy=ddp: {lost}", 1)
        store = PrefixStore(self._token, self._store)
        backend = "cpu:gloo,cuda:nccl" if self.on_gpu else "gloo"
        seconds = timedelta(seconds=self.timeout)
        distributed.init_process_group(backend, store=store, rank=self.rank, world_size=self.world, timeout=seconds)

    def lost(self, seconds: float) -> str | None:
        """Which hosts have given no sign of life for so long, in words; None if all have.

        One that has not appeared yet may be about to return, and to give up would cost one of torchrun's restarts.
        """
        since = time.monotonic() - seconds
        began = self._began if self._met.is_set() else self._began + ABSENT
        others = [rank for rank in range(self.world) if rank != self.rank]
        silent = [rank for rank in others if self._changed.get(rank, began) < since]
        if self._answered < since:
            silent = [0]  # whose host holds the store
        names = {self._signs[r][1] if r in self._signs else self._address if r == 0 else f"of rank {r}" for r in silent}
        return f"lost the process on host {', '.join(sorted(names))}" if names else None

    def missed(self) -> str | None:
        """Which hosts are lost, after a connection has broken: a process that was killed leaves no more signs."""
        end = time.monotonic() + 2 * SILENT
        while (lost := self.lost(SILENT)) is None and time.monotonic() < end:
            time.sleep(0.2)
        return lost

    def end(self) -> None:
        self._ended.set()

    def share(self, path: Path, exists: bool) -> Path | None:
        """The first process's file, which hosts that do not see it receive; None if there, `exists` is false."""
        told: list[Any] = [(path.stat().st_size, _digest(path)) if exists and self.rank == 0 else None]
        distributed.broadcast_object_list(told)
        if told[0] is None:
            return None
        size, digest = told[0]
        lacks: list[Any] = [None] * self.world
        distributed.all_gather_object(lacks, not path.exists() or _digest(path) != digest)
        if any(lacks):
            content = np.fromfile(path, np.uint8) if self.rank == 0 else np.empty(size, np.uint8)
            for part in torch.from_numpy(content).split(CHUNK):  # type: ignore[no-untyped-call]
                distributed.broadcast(part, 0)
            if lacks[self.rank] and self.local == 0:
                path.parent.mkdir(parents=True, exist_ok=True)
                with files.replacing(path) as temporary:
                    content.tofile(temporary)
                text = f"{path}: {size:,} bytes received from host {self._signs[0][1]}, which keeps the run's folder"
                terminal.say(text, stderr=True)
            distributed.barrier()
        return path


def _digest(path: Path) -> str:
    with open(path, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def command() -> str | None:
    """How the user has started this process's torchrun, where the system tells."""
    line = Path(f"/proc/{os.getppid()}/cmdline")
    words = line.read_text().split("\0")[1:-1] if line.exists() else []  # after the path of Python
    if words[:2] == ["-m", "torch.distributed.run"] or (words and Path(words[0]).name == "torchrun"):
        return shlex.join(["torchrun", *words[1 + (words[0] == "-m") :]])
    return None
