"""GradientBuckets: what is averaged when, and that ranks together train as one rank does."""

import copy
import gc
import socket
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from simulated_cuda import Cuda
from torch.nn.parallel import DistributedDataParallel

from rdn_fast import devices
from rdn_fast.config import ModelConfig
from rdn_fast.devices import CudaGraphed
from rdn_fast.distributed.gradients import BUCKET_SHARES, GradientBuckets
from rdn_fast.model import RDN
from rdn_fast.training.losses import weighted_loss
from rdn_fast.training.optimizer_step import make_optimizer_step
from rdn_fast.training.step import TrainStep

CPU = torch.device("cpu")
TINY = ModelConfig(num_features=6, growth_rate=4, num_blocks=6, num_layers=2)
PATCH, RANKS = 8, 2
SIZES = [6, 6, 6, 6, 3, 6, 1]  # of the ranks' batches together; of the last, rank 1 has nothing


def make_model(seed: int = 0) -> RDN:
    torch.manual_seed(seed)
    return RDN(TINY, "naive").to(memory_format=devices.memory_format(CPU))


def make_step(model: RDN, buckets: GradientBuckets | None = None, scale: float = 1.0) -> TrainStep:
    optimizer = devices.adam(model.parameters(), CPU, 1e-3, weight_decay=0.0)
    return TrainStep(model, optimizer, make_optimizer_step(optimizer, CPU, scale), CPU, buckets)


def batches(sizes: list[int], seed: int):
    """Yield lr, hr and the weight of one absolute error, for batches of these sizes."""
    generator = torch.Generator().manual_seed(seed)
    for size in sizes:
        lr = torch.rand(size, 3, PATCH, PATCH, generator=generator)
        hr = torch.rand(size, 3, 2 * PATCH, 2 * PATCH, generator=generator)
        yield lr, hr, torch.tensor(1 / hr.numel())


def equal(model: RDN, other: RDN) -> bool:
    return all(map(torch.equal, model.parameters(), other.parameters()))


@pytest.fixture
def alone():
    """A process group of this process only."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def begun(monkeypatch):
    """The tensors whose mean was begun; the mean with ranks that have the same gradients."""
    tensors = []

    def begin_mean(values, world):
        assert world == RANKS
        tensors.append(values)
        return SimpleNamespace(wait=lambda: None)

    monkeypatch.setattr(devices, "begin_mean", begin_mean)
    return tensors


def test_buckets_hold_all_gradients_once_in_the_order_of_backward(alone):
    model = RDN(ModelConfig(num_features=16, growth_rate=16, num_blocks=16, num_layers=4))
    buckets = GradientBuckets(model, RANKS)._buckets
    params = [p for bucket in buckets for p in bucket.params]
    assert list(map(id, params)) == list(map(id, list(model.parameters())[::-1]))
    sizes = [sum(p.numel() for p in bucket.params) for bucket in buckets]
    assert [size / sum(sizes) for size in sizes] == pytest.approx(BUCKET_SHARES, abs=0.03)
    assert sizes[-1] / sum(sizes) <= BUCKET_SHARES[-1]
    spans = sorted((v.data_ptr(), v.data_ptr() + v.nbytes) for bucket in buckets for v in bucket.views)
    assert all(end <= start for (_, end), (start, _) in pairwise(spans))
    assert not any(start % 16 for start, _ in spans)
    for bucket in buckets:
        first, last = bucket.flat.data_ptr(), bucket.flat.data_ptr() + bucket.flat.nbytes
        assert all(first <= view.data_ptr() and view.data_ptr() + view.nbytes <= last for view in bucket.views)


def test_buckets_begin_while_backward_computes(alone, begun):
    model = make_model()
    plain, buckets = copy.deepcopy(model), GradientBuckets(model, RANKS)
    at = []  # buckets begun when each gradient was there
    for p in model.parameters():
        p.register_post_accumulate_grad_hook(lambda _: at.append(len(begun)))
    lr, hr, weight = next(batches([2], 0))
    buckets.start()
    weighted_loss(model(lr), hr, weight).backward()
    weighted_loss(plain(lr), hr, weight).backward()
    assert len(at) == len(list(model.parameters()))
    assert len(buckets._buckets) > 3
    assert {*at} == {*range(len(buckets._buckets) + 1)}  # the last gradient completes the last bucket
    assert len(begun) == len(buckets._buckets)
    for p, other in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(p.grad, other.grad)
        assert p.grad.stride() == other.grad.stride() == p.stride()


def test_gradients_that_must_stay_where_they_are_stay(alone, begun, monkeypatch):
    monkeypatch.setattr(devices, "gradients_stay", lambda device: True)
    monkeypatch.setattr(devices, "supports_foreach", lambda device: False)
    model = make_model()
    plain, buckets = copy.deepcopy(model), GradientBuckets(model, RANKS)
    gradients = [torch.zeros_like(p) for p in model.parameters()]
    for p, gradient in zip(model.parameters(), gradients, strict=True):
        p.grad = gradient
    lr, hr, weight = next(batches([2], 0))
    buckets.start()
    weighted_loss(model(lr), hr, weight).backward()
    weighted_loss(plain(lr), hr, weight).backward()
    for p, gradient, other in zip(model.parameters(), gradients, plain.parameters(), strict=True):
        assert p.grad is gradient
        assert torch.equal(gradient, other.grad)


def test_what_is_sent_in_float16_comes_back_in_float32(alone, seed):
    model = make_model()
    plain, buckets = copy.deepcopy(model), GradientBuckets(model, 1, torch.float16)
    assert equal(model, plain)  # parameters are not rounded
    lr, hr, weight = next(batches([2], seed))
    buckets.start()
    (weighted_loss(model(lr), hr, weight) * 1024).backward()
    (weighted_loss(plain(lr), hr, weight) * 1024).backward()
    for p, other in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(p.grad, other.grad.half().float())
    with torch.no_grad():
        model.output.bias.add_(1e9)
    buckets.start()
    (weighted_loss(model(lr), hr, weight) * 1e9).backward()
    assert not model.output.bias.grad.isfinite().any()  # too large for it: such a step is skipped


def test_one_rank_with_buckets_is_byte_for_byte_one_without(alone, seed):
    plain, model = make_model(), make_model()
    steps = make_step(plain), make_step(model, GradientBuckets(model, 1))
    for batch in batches([3, 3, 2], seed):
        (share, skipped), (other, _) = (step(*batch) for step in steps)
        assert (share.item(), skipped.item()) == (other.item(), 0)
    assert equal(model, plain)


def test_a_step_that_failed_leaves_nothing_behind(alone, seed):
    plain, model = make_model(), make_model()
    step, other = make_step(model, GradientBuckets(model, 1)), make_step(plain)

    def fail(_):
        raise RuntimeError("out of memory")

    handle = model.sfe2.weight.register_hook(fail)  # near the end of backward
    batch = next(batches([2], seed))
    with pytest.raises(RuntimeError, match="out of memory"):
        step(*batch)
    handle.remove()
    for batch in batches([2, 2], seed):
        step(*batch)
        other(*batch)
    assert equal(model, plain)


def test_a_parameter_without_a_gradient_is_an_error(alone):
    model = make_model()
    model.unused = torch.nn.Parameter(torch.ones(3))
    step = make_step(model, GradientBuckets(model, 1))
    with pytest.raises(RuntimeError, match="left out the gradients"):
        step(*next(batches([2], 0)))


def share_of(rank: int, batch: tuple) -> tuple:
    """Return a rank's share of a batch as the sampler deals it: an empty one is a patch of weight 0."""
    lr, hr, weight = batch
    each, more = divmod(len(lr), RANKS)
    begin, count = rank * each + min(rank, more), each + (rank < more)
    if not count:
        return lr[:1], hr[:1], torch.zeros(())
    return lr[begin : begin + count], hr[begin : begin + count], weight


def rank_main(rank: int, port: int, seed: int) -> None:
    torch.set_num_threads(1)
    store = dist.TCPStore("localhost", port, RANKS, is_master=rank == 0)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=RANKS)
    check_all_ranks_train_as_one(rank, seed)
    check_a_share_of_weight_0_changes_no_byte(rank, seed)
    check_against_torch(rank, seed)
    check_captured(rank, seed)
    check_in_float16(rank, seed)
    gc.collect()  # buckets and their hooks refer to each other, and to the group's work
    dist.barrier()  # no rank ends while another still uses the store
    dist.destroy_process_group()


def trained(rank: int, seed: int, scale: float = 1.0, seed_of_model: int = 0) -> RDN:
    model = make_model(seed_of_model)
    step = make_step(model, GradientBuckets(model, RANKS), scale)
    for batch in batches(SIZES, seed):
        step(*share_of(rank, batch))
    return model


def check_all_ranks_train_as_one(rank: int, seed: int) -> None:
    whole = make_model()
    step = make_step(whole)
    for batch in batches(SIZES, seed):
        step(*batch)
    model = trained(rank, seed, seed_of_model=rank)  # rank 1 takes the parameters of rank 0
    for mine, expected in zip(model.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(mine, expected, rtol=0, atol=2e-5)
        others = [torch.empty_like(mine) for _ in range(RANKS)]
        dist.all_gather(others, mine.detach().contiguous())
        assert all(torch.equal(other, mine) for other in others)
    assert equal(trained(rank, seed, scale=1024.0), trained(rank, seed, scale=1024.0))


def check_a_share_of_weight_0_changes_no_byte(rank: int, seed: int) -> None:
    """Twice the loss, halved, and a sum with zeros: the order of sums is that of one rank."""
    plain, model = make_model(), make_model()
    steps = make_step(plain), make_step(model, GradientBuckets(model, RANKS))
    for lr, hr, weight in batches([3, 3, 3], seed):
        steps[0](lr, hr, weight)
        steps[1](lr, hr, weight * (rank == 0))
    assert equal(model, plain)


def check_against_torch(rank: int, seed: int) -> None:
    """With two ranks every sum has two terms, so DistributedDataParallel gives the same bytes."""
    theirs = make_model()
    replica = DistributedDataParallel(theirs, static_graph=True, gradient_as_bucket_view=True)
    optimizer = devices.adam(theirs.parameters(), CPU, 1e-3, weight_decay=0.0)
    for batch in batches(SIZES, seed):
        lr, hr, weight = share_of(rank, batch)
        optimizer.zero_grad()
        (weighted_loss(replica(lr), hr, weight) * RANKS).backward()
        optimizer.step()
    assert equal(trained(rank, seed), theirs)


def check_captured(rank: int, seed: int) -> None:
    """One capture, then replays alone, whatever a rank's share; at most as many all-reduces a step as buckets."""
    expected = trained(rank, seed)
    with pytest.MonkeyPatch.context() as patch:
        cuda = Cuda(patch)

        def graphed(function, device):
            return CudaGraphed(cuda.records(function, shapes=((), ())), torch.device("cuda"))

        patch.setattr(devices, "CudaGraphed", graphed)
        model, all_reduces, begin_mean = make_model(), [], devices.begin_mean
        buckets = GradientBuckets(model, RANKS)
        step = make_step(model, buckets)
        patch.setattr(devices, "begin_mean", lambda *of: all_reduces.append(of) or begin_mean(*of))
        for batch in batches(SIZES, seed):
            step(*share_of(rank, batch), size=SIZES[0] // RANKS)
    calls = [entry for entry in cuda.log if "waits" not in entry]
    replays = len(SIZES) - CudaGraphed.EAGER
    assert calls == [*["call on side"] * CudaGraphed.EAGER, "capture on side", *["replay on main"] * replays]
    assert len(all_reduces) == len(SIZES) * len(buckets._buckets)
    for mine, other in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=2e-5)


def check_in_float16(rank: int, seed: int) -> None:
    """Each rank's gradient is rounded once, and the sum: 2^-11 each; below 2^-14 by 2^-25 at most."""
    lr, hr, weight = share_of(rank, next(batches([6], seed)))
    found = {}
    for name, dtype in (("alone", None), ("float32", torch.float32), ("float16", torch.float16)):
        model = make_model()
        buckets = GradientBuckets(model, RANKS, dtype) if dtype else None
        if buckets:
            buckets.start()
        (weighted_loss(model(lr), hr, weight) * RANKS * 1024).backward()
        found[name] = [p.grad.clone() for p in model.parameters()]
    for own, exact, low in zip(*found.values(), strict=True):
        sizes = own.abs()
        dist.all_reduce(sizes)
        assert ((low - exact).abs() <= 2**-10 * sizes / RANKS + 2**-23).all()
    assert any(not torch.equal(low, exact) for exact, low in zip(found["float32"], found["float16"], strict=True))


@pytest.mark.slow
def test_two_ranks(seed):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(rank_main, (port, seed), nprocs=RANKS)
