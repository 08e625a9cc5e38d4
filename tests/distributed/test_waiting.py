"""A collective that fails since a rank is gone or silent ends in one line, wherever the program waits for it."""

import os
import socket
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from test_gradients import CPU, alone, batches, make_model  # noqa: F401 (a fixture)
from test_rendezvous import free_port

from rdn_fast.distributed import process_group
from rdn_fast.distributed.gradients import GradientBuckets
from rdn_fast.distributed.in_touch import InTouch
from rdn_fast.distributed.process_group import Ranks
from rdn_fast.distributed.waiting import NoAnswer, waiting
from rdn_fast.errors import UserError
from rdn_fast.training.losses import weighted_loss
from rdn_fast.training.step import ResultBuffer

RANKS = 3
LOST = "lost contact with another rank, whose own message says why"
SILENT_IN = "results", "parameters", "backward"  # places of the test in processes: 20 s each
SILENT_SECONDS = 10

# What gloo raises when a rank does not answer or has gone.
MESSAGES = (
    "[/gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 600000ms for recv operation to complete",
    "Application timeout caused pair closure",
    "[/gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]:40171: Connection reset by peer",
    "Connection closed by peer [127.0.0.1]:40171",
)
# Errors that no other rank explains.
OTHERS = (
    "[enforce fail at /gloo/transport/tcp/device.cc:84] ifa != nullptr. Unable to find address for: eth7",
    "The server socket has failed to listen on any local network address. port: 29500, name: EADDRINUSE",
    "DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes",
    "CUDA error: an illegal memory access was encountered",
)


def make_backward(ranks: Ranks) -> Callable[[], None]:
    """Return a backward() that averages gradients. A collective: it copies the parameters."""
    model = make_model()
    buckets = GradientBuckets(model, ranks.world)
    lr, hr, weight = next(batches([2], 0))

    def backward() -> None:
        buckets.start()
        weighted_loss(model(lr), hr, weight).backward()

    return backward


def results(ranks: Ranks) -> None:
    buffer = ResultBuffer(CPU)
    buffer.add(1, 0, 1e-4, *torch.ones(3))
    buffer.begin_read()
    buffer.read(ranks)


PLACES: dict[str, Callable[[Ranks], object]] = {
    "on_rank0": lambda ranks: ranks.on_rank0(int),
    "gather": lambda ranks: ranks.gather("of this rank"),
    "all_max": lambda ranks: ranks.all_max(1, 2),
    "results": results,
    "in touch": lambda ranks: InTouch(ranks, int).finish(),
    "parameters": lambda ranks: GradientBuckets(make_model(), ranks.world),
    "backward": lambda ranks: make_backward(ranks)(),
}


@pytest.fixture
def ranks(monkeypatch) -> Ranks:
    """A rank of three that has connected, and has lost the store."""
    for name, value in {"WORLD_SIZE": RANKS, "RANK": 1, "MASTER_ADDR": "node0"}.items():
        monkeypatch.setenv(name, str(value))
    ranks = Ranks()
    ranks._host_group = object()  # collectives of the host are replaced
    return ranks


def let_fail(monkeypatch, place: str, message: str) -> None:
    """Let all collectives fail that the place waits for."""

    def fail(*_, **__):
        raise RuntimeError(message)

    def all_reduce(*_, async_op=False, **__):
        return SimpleNamespace(wait=fail) if async_op else fail()

    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    for name in ("all_gather_object", "broadcast_object_list"):
        monkeypatch.setattr(dist, name, fail)
    if place == "parameters":  # else that is over before
        monkeypatch.setattr(dist, "broadcast", fail)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("message", MESSAGES)
def test_an_error_of_a_collective_is_known_by_its_place(alone, ranks, monkeypatch, place, message):  # noqa: F811
    let_fail(monkeypatch, place, message)
    with pytest.raises(RuntimeError) as raised:
        PLACES[place](ranks)
    assert message in str(raised.value)
    monkeypatch.setattr(ranks, "_silent_ranks", lambda timed_out: ["rank 2 (node1)"] if timed_out else [])
    assert ranks.describe_lost_rank(raised.value) == LOST
    monkeypatch.setattr(process_group, "TIMEOUT", 0.0)
    assert ranks.describe_lost_rank(raised.value) == "no answer for 0 s from rank 2 (node1)"


@pytest.mark.parametrize("message", OTHERS)
@pytest.mark.parametrize("kind", [RuntimeError, dist.DistNetworkError])
def test_another_error_stays_what_it_is(ranks, message, kind):
    raised = kind(message)
    with pytest.raises(RuntimeError) as caught, waiting():
        raise raised
    assert caught.value is raised
    assert ranks.describe_lost_rank(raised) is None


@pytest.mark.parametrize("message", [*MESSAGES, "gloo"])
def test_an_error_of_another_place_is_none_of_a_collective(ranks, message):
    assert ranks.describe_lost_rank(RuntimeError(message)) is None


def test_the_time_of_a_wait_counts_from_where_its_collective_began():
    with pytest.raises(NoAnswer) as raised, waiting(since=-1e9):
        raise RuntimeError("Application timeout caused pair closure")
    assert raised.value.seconds > 1e9


@pytest.mark.parametrize("rank", range(2))
def test_a_rank_that_never_connects(ranks, monkeypatch, rank):
    """Rank 0 has the store, and waits in its making for all others."""
    ranks.rank, ranks._host_group = rank, None
    told = ranks.describe_lost_rank(dist.DistNetworkError("connection refused"))
    assert told == "cannot connect to the other ranks (connection refused)"
    monkeypatch.setattr(process_group, "TIMEOUT", 0.0)
    expected = "another rank" if rank == 0 else "rank 0 (node0)"
    assert ranks.describe_lost_rank(dist.DistStoreError("1/3 clients joined")) == f"no answer for 0 s from {expected}"


def test_a_silent_rank_that_has_not_told_its_node(ranks, monkeypatch):
    ranks._store = dist.HashStore()
    ranks._store.set("node of rank 0", "node0")
    ranks._store.set("rank 0 waits", "")
    monkeypatch.setattr(process_group, "TIMEOUT", 0.0)
    monkeypatch.setattr(process_group, "_GRACE", 1.0)
    assert ranks.describe_lost_rank(NoAnswer(RuntimeError("x"), 1.0)) == "no answer for 0 s from rank 2"


def test_a_store_that_no_longer_answers(ranks, monkeypatch):
    """Its host is stopped. Only a rank that has waited for TIMEOUT says so."""
    answers = threading.Event()

    def hang(*_):
        answers.wait()
        raise RuntimeError

    ranks._store = SimpleNamespace(set_timeout=hang)
    monkeypatch.setattr(process_group, "_GRACE", 0.01)
    error = NoAnswer(RuntimeError("x"), 1.0)
    assert ranks.describe_lost_rank(error) == LOST
    monkeypatch.setattr(process_group, "TIMEOUT", 0.0)
    assert ranks.describe_lost_rank(error) == "no answer for 0 s from rank 0 (node0)"
    answers.set()


@pytest.mark.parametrize("message", ["Distributed package doesn't have HCCL built in", OTHERS[-1]])
def test_a_backend_that_cannot_begin_says_why(ranks, monkeypatch, message):
    """Its error may come from this rank alone, and then every rank may have the same."""

    def fail(*_, **__):
        raise RuntimeError(message)

    ranks._host_group = None
    monkeypatch.setattr(dist, "rendezvous", lambda *_, **__: iter([(dist.HashStore(), 1, RANKS)]))
    monkeypatch.setattr(dist, "init_process_group", fail)
    monkeypatch.setattr(process_group, "_GRACE", 0.01)
    with pytest.raises(RuntimeError) as raised:
        ranks.connect(CPU)
    told = None if message in OTHERS else f"cannot connect to the other ranks ({message})"
    assert ranks.describe_lost_rank(raised.value) == told


def test_a_fault_of_the_device_in_a_collective_stays_what_it_is(alone, ranks, monkeypatch):  # noqa: F811
    let_fail(monkeypatch, "backward", OTHERS[-1])
    with pytest.raises(RuntimeError, match="an illegal memory access") as raised:
        PLACES["backward"](ranks)
    assert not isinstance(raised.value, NoAnswer)
    assert ranks.describe_lost_rank(raised.value) is None


def rank_main(rank: int, gone: int, port, barrier) -> None:
    """Rank `gone` is silent in each place of SILENT_IN, and at last ends in the middle of the others' backward."""
    torch.set_num_threads(1)
    os.environ |= {"WORLD_SIZE": str(RANKS), "RANK": str(rank), "MASTER_ADDR": "localhost"}
    process_group._GRACE = SILENT_SECONDS
    for place in (*SILENT_IN, "lost"):
        if rank == 0:
            port.value = free_port()
        barrier.wait()
        os.environ["MASTER_PORT"] = str(port.value)
        ranks, process_group.TIMEOUT = Ranks(), 300
        ranks.connect(CPU)
        call = make_backward(ranks) if place in ("backward", "lost") else partial(PLACES[place], ranks)
        ranks.gather(None)
        if place == "lost" and rank == gone:
            os._exit(0)
        if place != "lost":
            process_group.TIMEOUT = SILENT_SECONDS
            dist.distributed_c10d._set_pg_timeout(timedelta(seconds=SILENT_SECONDS))
        if rank != gone:
            with pytest.raises(NoAnswer) as raised:
                call()
            silent = f"no answer for {SILENT_SECONDS} s from rank {gone} ({socket.gethostname()})"
            expected = LOST if place == "lost" else silent
            assert ranks.describe_lost_rank(raised.value) == expected, (place, raised.value)
        if place != "lost":
            barrier.wait()
            ranks.close()


@pytest.mark.slow
def test_three_ranks_of_which_one_is_gone(seed):
    gone, processes = int(np.random.default_rng(seed).integers(RANKS)), torch.multiprocessing.get_context("spawn")
    port, barrier = processes.Value("i"), processes.Barrier(RANKS)
    torch.multiprocessing.spawn(rank_main, (gone, port, barrier), nprocs=RANKS)


def rank_of_a_mistake(rank: int, port: int, said) -> None:
    """Rank 0 takes its time to report its user's mistake; an agent would end it when another rank leaves earlier."""
    os.environ |= {"WORLD_SIZE": "2", "RANK": str(rank), "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    ranks = Ranks()
    ranks.connect(CPU)

    def mistaken() -> None:
        raise UserError("mend it")

    if rank == 0:
        with pytest.raises(UserError, match="mend it"):
            ranks.on_rank0(mistaken)
        time.sleep(2)
        said.value = 1
        os._exit(0)  # as the command line of a rank does
    with pytest.raises(SystemExit) as left:
        ranks.on_rank0(mistaken)
    assert left.value.code == 2
    assert said.value


@pytest.mark.slow
def test_rank_0_reports_a_mistake_before_the_others_leave():
    said = torch.multiprocessing.get_context("spawn").Value("i")
    torch.multiprocessing.spawn(rank_of_a_mistake, (free_port(), said), nprocs=2)
    assert said.value
