"""Two ranks, one simulated npu each: collectives, and DistributedDataParallel with the results of gloo on the CPU."""

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
import torch_npu  # noqa: F401
from torch import nn
from torch.nn.parallel import DistributedDataParallel

RANKS = 2


def train(device: torch.device, group, **settings) -> list[torch.Tensor]:
    torch.manual_seed(dist.get_rank())  # DDP broadcasts those of rank 0
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 3, padding=1)).to(device)
    replica = DistributedDataParallel(model, process_group=group, **settings)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, foreach=True)
    generator = torch.Generator().manual_seed(dist.get_rank())
    for _ in range(3):
        optimizer.zero_grad()
        x, y = (torch.rand(2, 3, 8, 8, generator=generator).to(device) for _ in range(2))
        F.l1_loss(replica(x), y).backward()
        optimizer.step()
    return [p.detach().cpu() for p in model.parameters()]


def check_collectives(device: torch.device) -> None:
    rank = dist.get_rank()
    mine = torch.full((3,), float(rank + 1), pin_memory=True).to(
        device, non_blocking=True
    )  # a collective must wait for the copy
    dist.all_reduce(mine)
    assert mine.tolist() == [3] * 3
    dist.all_reduce(mine[:1], op=dist.ReduceOp.MAX)
    every = [torch.empty(2, device=device) for _ in range(RANKS)]
    dist.all_gather(every, torch.full((2,), float(rank), device=device))
    assert torch.stack(every).tolist() == [[0, 0], [1, 1]]
    together = torch.empty(4, device=device)
    dist.all_gather_single(together, torch.full((2,), float(rank), device=device))
    assert together.tolist() == [0, 0, 1, 1]
    word = torch.full((2,), float(rank), device=device)
    dist.broadcast(word, src=1)
    assert word.tolist() == [1, 1]
    work = dist.all_reduce(word, async_op=True)
    work.wait()
    assert word.tolist() == [2, 2]
    half = torch.empty(2, device=device)
    dist.reduce_scatter_single(half, together)
    assert half.tolist() == [2 * rank] * 2
    if rank == 0:
        dist.send(word, dst=1)
    else:
        dist.recv(half, src=0)
        assert half.tolist() == [2, 2]
    dist.barrier()
    with pytest.raises(ValueError, match="hccl: a tensor is on cpu"):
        dist.all_reduce(torch.ones(1))
    objects = [{"rank": rank} if rank == 0 else None]
    dist.broadcast_object_list(objects, device=device)
    assert objects == [{"rank": 0}]


def check_unordered_collective(device: torch.device) -> None:
    """Reduce memory that another stream still writes: the result must be wrong, as on a device."""
    side, memory = torch.Stream(device), torch.zeros(3, device=device)
    torch.npu.synchronize()
    with side:
        memory.copy_(torch.ones(3, pin_memory=True), non_blocking=True)
    dist.all_reduce(memory)
    torch.npu.synchronize()
    assert memory.tolist() != [RANKS] * 3


def rank_main(rank: int, store: str) -> None:
    device = torch.device("npu", rank)
    torch.npu.set_device(device)
    dist.init_process_group("hccl", init_method=f"file://{store}", rank=rank, world_size=RANKS, device_id=device)
    assert dist.get_backend() == "hccl"
    gloo = dist.new_group(backend="gloo")
    check_collectives(device)
    check_unordered_collective(device)
    for settings in ({}, {"gradient_as_bucket_view": True, "static_graph": True}):
        ours, theirs = train(device, None, **settings), train(torch.device("cpu"), gloo, **settings)
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True)), settings
    dist.destroy_process_group()


def test_two_ranks(tmp_path):
    torch.multiprocessing.spawn(rank_main, (str(tmp_path / "store"),), nprocs=RANKS)
