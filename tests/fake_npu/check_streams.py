"""Streams, events and copies that do not block: what is not waited for is seen to be missing."""

import pytest
import torch
import torch_npu  # noqa: F401

NPU = torch.device("npu", 0)


def pinned(value: float, size: int = 4) -> torch.Tensor:
    return torch.full((size,), float(value), pin_memory=True)


def spoilt(tensor: torch.Tensor) -> bool:
    return bool(tensor.cpu().isnan().all())


collides = pytest.warns(UserWarning, match="nothing makes one wait for the other")


@pytest.fixture
def side():
    return torch.Stream(NPU)


@pytest.fixture(autouse=True)
def _clean():
    """Streams that a test left working would spoil the memory that the next one is given."""
    yield
    torch.npu.synchronize()
    torch.npu.empty_cache()


def test_a_copy_from_pinned_memory_reads_it_when_it_is_waited_for():
    host = pinned(1)
    device = host.to(NPU, non_blocking=True)
    host.fill_(2)
    assert device.tolist() == [2] * 4


@pytest.mark.parametrize(
    "wait",
    [torch.accelerator.synchronize, torch.npu.synchronize, lambda: torch.accelerator.current_stream().synchronize()],
)
def test_a_copy_to_pinned_memory_is_seen_when_the_host_has_waited(wait):
    host = pinned(1)
    host.copy_(torch.full((4,), 3.0, device=NPU), non_blocking=True)
    assert host.tolist() == [1] * 4
    wait()
    assert host.tolist() == [3] * 4


def test_to_the_host_without_blocking_gives_nothing_yet():
    device = torch.full((4,), 3.0, device=NPU)
    host = device.to("cpu", non_blocking=True)
    assert host.is_pinned()
    assert host.isnan().all()
    device.sum().item()  # any blocking read of the stream waits for all before it
    assert host.tolist() == [3] * 4


def test_the_order_of_a_stream_holds():
    device, host = torch.full((4,), 3.0, device=NPU), pinned(0)
    host.copy_(device, non_blocking=True)
    device.mul_(2)  # comes after the copy
    device.copy_(pinned(5), non_blocking=True)  # whose host memory is freed at once
    total = device.sum()
    device.copy_(pinned(7), non_blocking=True)
    assert total.item() == 20
    assert host.tolist() == [3] * 4
    assert device.tolist() == [7] * 4
    there_and_back = pinned(0)
    there_and_back.copy_(device, non_blocking=True)
    device.zero_()
    assert device.copy_(there_and_back, non_blocking=True).tolist() == [7] * 4


def test_memory_that_is_not_pinned_is_copied_at_once():
    host = torch.full((4,), 1.0)
    device = host.to(NPU, non_blocking=True)
    host.fill_(2)
    assert device.tolist() == [1] * 4
    assert host.copy_(device, non_blocking=True).tolist() == [1] * 4


def test_a_copy_that_converts_reads_the_host_at_once_and_the_device_in_order(side):
    host = torch.full((4,), 1, dtype=torch.uint8).pin_memory()
    device = torch.empty(4, device=NPU).copy_(host, non_blocking=True)
    columns = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).pin_memory().t().to(NPU, non_blocking=True)
    host.fill_(2)
    assert device.tolist() == [1] * 4
    assert columns.tolist() == [[1, 3], [2, 4]]
    back = pinned(0, 2).copy_(columns[0].half(), non_blocking=True)
    assert back.tolist() == [0, 0]
    torch.npu.synchronize()
    assert back.tolist() == [1, 3]


WAITS = {
    "stream": lambda side: torch.accelerator.current_stream().wait_stream(side),
    "event": lambda side: torch.accelerator.current_stream().wait_event(side.record_event()),
    "host": lambda side: side.synchronize(),
    "event on the host": lambda side: side.record_event().synchronize(),
}


@pytest.mark.parametrize("wait", WAITS.values(), ids=WAITS)
def test_computing_on_a_copy_of_another_stream(wait, side):
    device = torch.full((4,), 1.0, device=NPU)
    torch.npu.synchronize()

    def copy():
        with side:
            device.copy_(pinned(2), non_blocking=True)

    copy()
    with collides:
        assert spoilt(device + 1)
    torch.npu.synchronize()
    copy()
    wait(side)
    assert (device + 1).tolist() == [3] * 4


def test_waiting_for_one_that_waits_for_another(side):
    other = torch.Stream(NPU)
    with side:
        device = pinned(2).to(NPU, non_blocking=True)
    other.wait_stream(side)
    torch.accelerator.current_stream().wait_event(other.record_event())
    assert (device + 1).tolist() == [3] * 4


def test_an_event_stands_for_what_came_before_it(side):
    first, second = torch.empty(4, device=NPU), torch.empty(4, device=NPU)
    torch.npu.synchronize()
    with side:
        first.copy_(pinned(1), non_blocking=True)
        event = side.record_event()
        second.copy_(pinned(2), non_blocking=True)
    torch.accelerator.current_stream().wait_event(event)
    assert first.tolist() == [1] * 4
    with collides:
        assert spoilt(second)


def test_copying_back_what_another_stream_computes(side):
    host = pinned(0)
    device = torch.full((4,), 1.0, device=NPU) + 1
    with side, collides:
        host.copy_(device, non_blocking=True)
    side.synchronize()
    assert host.isnan().all()
    side.wait_stream(torch.accelerator.current_stream())
    with side:
        host.copy_(device, non_blocking=True)
    side.synchronize()
    assert host.tolist() == [2] * 4


def test_overwriting_what_another_stream_still_reads(side):
    slot = torch.full((4,), 1.0, device=NPU)
    torch.npu.synchronize()
    for waits in (False, True):
        used = slot * 2
        if waits:
            side.wait_stream(torch.accelerator.current_stream())
            with side:
                slot.copy_(pinned(5), non_blocking=True)
        else:
            with side, collides:
                slot.copy_(pinned(5), non_blocking=True)
        torch.accelerator.current_stream().wait_stream(side)
        assert used.tolist() == [2] * 4
        assert slot.tolist() == [5] * 4 if waits else spoilt(slot)
        slot.fill_(1)


def test_slices_of_one_tensor_are_used_apart(side):
    slots = torch.ones(2, 4, device=NPU)
    torch.npu.synchronize()
    used = slots[0] * 2
    with side:
        slots[1].copy_(pinned(5), non_blocking=True)
    assert used.tolist() == [2] * 4
    side.synchronize()
    assert slots.tolist() == [[1] * 4, [5] * 4]


@pytest.mark.parametrize("recorded", [False, True])
def test_memory_freed_while_another_stream_uses_it(recorded, side):
    main = torch.accelerator.current_stream()
    with side:
        device = pinned(1).to(NPU, non_blocking=True)
    main.wait_stream(side)
    used = device * 2
    address = device.data_ptr()
    if recorded:
        device.record_stream(main)
    del device  # to be used again by its own stream, which does not know of the multiplication
    with side:
        if recorded:
            other = pinned(5).to(NPU, non_blocking=True)
            assert other.data_ptr() != address
        else:
            with collides:
                other = pinned(5).to(NPU, non_blocking=True)
            assert other.data_ptr() == address
    side.synchronize()
    assert used.tolist() == [2] * 4
    assert other.tolist() == [5] * 4 if recorded else spoilt(other)


@pytest.mark.parametrize("waits", [False, True])
def test_pinned_memory_filled_anew_while_it_is_read(waits, side):
    host = pinned(1)
    with side:
        device = host.to(NPU, non_blocking=True)
        copied = side.record_event()
    torch.accelerator.current_stream().wait_event(copied)
    doubled = device * 2  # has been asked for, and the copy with it, which says nothing of when they happen
    if waits:
        copied.synchronize()
    host.fill_(9)
    if waits:
        assert doubled.tolist() == [2] * 4
    else:
        with pytest.raises(
            RuntimeError, match="pinned memory was written to while a copy to npu:0 could still be reading it"
        ):
            doubled.tolist()


def test_events():
    begin, end = (torch.Event(NPU, enable_timing=True) for _ in range(2))
    assert end.query()  # there is nothing to wait for
    begin.record()
    device = pinned(1).to(NPU, non_blocking=True)
    end.record()
    with pytest.raises(RuntimeError, match="must be completed"):
        begin.elapsed_time(end)
    end.synchronize()
    assert 0 <= begin.elapsed_time(end) < 60_000
    assert device.tolist() == [1] * 4


def ring(forget: str) -> torch.Tensor:
    """Return six batches of a loader with two slots on host and device each. `forget`: the wait to leave out."""
    main, side = torch.accelerator.current_stream(), torch.Stream(NPU)
    host, device = [pinned(0), pinned(0)], [torch.empty(4, device=NPU) for _ in range(2)]
    torch.npu.synchronize()
    copied, used, results = [None, None], [None, None], []
    for batch in range(6):
        slot = batch % 2
        if copied[slot] and forget != "the host, for the copy":
            copied[slot].synchronize()
        host[slot].fill_(batch)
        with side:
            if used[slot] and forget != "the copy, for the computation before":
                side.wait_event(used[slot])
            device[slot].copy_(host[slot], non_blocking=True)
            copied[slot] = side.record_event()
        if forget != "the computation, for the copy":
            main.wait_event(copied[slot])
        results.append(device[slot] * 2)
        used[slot] = main.record_event()
    return torch.stack(results).cpu()


def test_a_ring_of_slots():
    assert ring("nothing").tolist() == [[2 * batch] * 4 for batch in range(6)]


@pytest.mark.parametrize("forget", ["the copy, for the computation before", "the computation, for the copy"])
def test_a_ring_of_slots_of_a_device_that_does_not_wait(forget):
    with collides:
        assert ring(forget).isnan().any()


def test_a_ring_of_slots_of_a_host_that_does_not_wait():
    with pytest.raises(RuntimeError, match="pinned memory was written to"):
        ring("the host, for the copy")


@pytest.mark.parametrize(
    "ask", [lambda stream: stream.query(), lambda stream: stream.record_event().query()], ids=["stream", "event"]
)
def test_a_host_that_asks_in_a_loop_is_not_kept_for_ever(ask):
    host = pinned(0)
    host.copy_(torch.ones(4, device=NPU), non_blocking=True)
    asked = 0
    while not ask(torch.accelerator.current_stream()):
        assert host.tolist() == [0] * 4
        asked += 1
        assert asked < 10
    assert asked
    assert host.tolist() == [1] * 4


def test_current_streams(side):
    main = torch.accelerator.current_stream()
    assert main == torch.npu.current_stream()
    assert main != side
    with side:
        assert torch.accelerator.current_stream() == side
        with torch.npu.stream(main):
            assert torch.npu.current_stream() == main
    torch.npu.set_stream(side)
    assert torch.npu.current_stream() == side
    torch.accelerator.set_stream(main)
    assert torch.accelerator.current_stream() == main
    with torch.npu.device(1):
        assert torch.npu.current_stream() == torch.npu.current_stream("npu:1")
        assert torch.npu.current_device() == 1
        assert torch.Stream().device == torch.device("npu:1")
    assert torch.npu.current_device() == 0


def test_devices_wait_for_each_other_when_they_copy():
    first = pinned(3).to(NPU, non_blocking=True)
    second = first.to("npu:1")
    assert (second + 1).tolist() == [4] * 4
    assert second.to(NPU).add_(first).tolist() == [6] * 4


def test_backward_on_the_stream_of_forward(side):
    weight = torch.ones(4, device=NPU, requires_grad=True)
    side.wait_stream(torch.accelerator.current_stream())
    with side:
        x = pinned(3).to(NPU, non_blocking=True)
        loss = (weight * x).sum()
    loss.backward()
    assert weight.grad.tolist() == [3] * 4
