"""How the processes of a run on several hosts meet, and how a lost one is noticed."""

import socket
import time
from datetime import timedelta
from typing import Any

import pytest
from torch import distributed
from torch.distributed import TCPStore

from conftest import configure, refusal
from vggexp.errors import UserError
from vggexp.system import terminal
from vggexp.training import peers
from vggexp.training.peers import Peers


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> TCPStore:
    """The store of torchrun's first agent, which outlives the attempts to train."""
    made = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=20))
    values = {
        "TORCHELASTIC_RUN_ID": "run",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "0",
    }
    for name, value in (values | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(made.port)}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(distributed, "init_process_group", lambda *args, **options: None)
    return made


def start(monkeypatch: pytest.MonkeyPatch, rank: int, host: str, seconds: float = 20) -> Peers:
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setattr(socket, "gethostname", lambda: host)
    made = Peers.of(configure("trainer=ddp", "trainer.accelerator=cpu", f"trainer.timeout={seconds}"))
    assert made is not None
    return made


def test_each_attempt_meets_in_a_part_of_the_store_of_its_own(monkeypatch: pytest.MonkeyPatch, store: TCPStore) -> None:
    tokens = set()
    for _ in range(2):
        first, second = (start(monkeypatch, rank, "a") for rank in range(2))
        second._waits = True
        first.meet()
        second.meet()
        assert first._token == second._token != ""
        tokens.add(first._token)
        first.end()
        second.end()
        first.join()
        second.join()
    assert len(tokens) == 2


def test_what_an_earlier_attempt_has_left_is_no_sign_of_life(monkeypatch: pytest.MonkeyPatch, store: TCPStore) -> None:
    monkeypatch.setattr(peers, "ABSENT", 2)
    store.set("vggexp/1", "earlier b True 7")
    first = start(monkeypatch, 0, "a", seconds=4)  # a busy machine may miss a sign or two
    began = time.monotonic()
    assert refusal(first.meet) == "trainer.strategy=ddp: lost the process on host b"
    assert 6 < time.monotonic() - began < 20  # it may be about to return
    first.end()


def test_a_process_that_is_killed_is_named_by_its_host(monkeypatch: pytest.MonkeyPatch, store: TCPStore) -> None:
    monkeypatch.setattr(peers, "SILENT", 2.5)
    first, second = (start(monkeypatch, rank, "b") for rank in range(2))
    second._waits = True
    first.meet()
    second.meet()
    assert first.lost(2.5) is None
    second.end()
    began = time.monotonic()
    assert first.missed() == "lost the process on host b"
    assert time.monotonic() - began < 10
    first.end()


def test_a_process_that_is_started_again_is_another_one(monkeypatch: pytest.MonkeyPatch, store: TCPStore) -> None:
    first, second = (start(monkeypatch, rank, "b") for rank in range(2))
    second._waits = True
    first.meet()
    second.meet()
    second.end()
    third = start(monkeypatch, 1, "b")
    monkeypatch.setattr(peers, "SILENT", 2.5)
    assert first.missed() == "lost the process on host b"
    third.end()
    first.end()


def test_the_command_to_go_on_is_printed_whole(capfd: pytest.CaptureFixture[str]) -> None:
    command = f"torchrun {' '.join(f'--option={n}' for n in range(100))}"
    assert terminal.fail(UserError("x" * 1000 + ": ", 1, command)) == 1
    line = capfd.readouterr().err
    assert line.endswith(f": {command}\n")
    assert len(line) < 500 + len(command)


def test_a_run_of_one_process_has_no_peers(monkeypatch: pytest.MonkeyPatch, store: Any) -> None:
    assert Peers.of(configure("trainer.accelerator=cpu")) is None
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("RANK", "0")
    assert Peers.of(configure("trainer=ddp", "trainer.accelerator=cpu")) is None
