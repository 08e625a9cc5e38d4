"""The simulated device alone: what it refuses, its memory, its generators, and the functions of torch.npu."""

import copy
import io
import warnings

import pytest
import torch
import torch_npu

from rdn_fast import devices

NPU = torch.device("npu", 0)
PICTURES = (1, 3, 2, 2)
no_float64 = pytest.warns(UserWarning, match="no float64")

CHANNELS_LAST = {
    "to": lambda x: x.to(memory_format=torch.channels_last),
    "contiguous": lambda x: x.contiguous(memory_format=torch.channels_last),
    "clone": lambda x: x.clone(memory_format=torch.channels_last),
    "empty": lambda x: torch.empty(PICTURES, device=NPU, memory_format=torch.channels_last),
    "empty_like": lambda x: torch.empty_like(x, memory_format=torch.channels_last),
    "from the host": lambda x: torch.ones(PICTURES).to(NPU, memory_format=torch.channels_last),
    "resize": lambda x: torch.empty(0, device=NPU).resize_(PICTURES, memory_format=torch.channels_last),
    "module": lambda x: torch.nn.Conv2d(3, 3, 1).to(NPU, memory_format=torch.channels_last),
    "module there": lambda x: torch.nn.Conv2d(3, 3, 1).to(NPU).to(memory_format=torch.channels_last),
    "three dimensions": lambda x: torch.empty(1, 1, 1, 1, 1, device=NPU, memory_format=torch.channels_last_3d),
}


@pytest.mark.parametrize("make", CHANNELS_LAST.values(), ids=CHANNELS_LAST)
def test_channels_last_is_rejected(make):
    with pytest.raises(RuntimeError, match=r"Only c10::MemoryFormat::Contiguous is supported"):
        make(torch.ones(PICTURES, device=NPU))


def test_convolutions_of_permuted_tensors_are_contiguous():
    x = torch.ones(1, 2, 2, 3, device=NPU).permute(0, 3, 1, 2)
    assert torch.nn.functional.conv2d(x, torch.ones(4, 3, 1, 1, device=NPU)).is_contiguous()


FLOAT64 = {
    "created": lambda: torch.zeros(3, device=NPU, dtype=torch.float64),
    "from a list": lambda: torch.tensor([1.0, 2.0], dtype=torch.float64, device=NPU),
    "moved": lambda: torch.ones(3, dtype=torch.float64).to(NPU),
    "cast": lambda: torch.ones(3, device=NPU).double(),
    "created like another": lambda: torch.zeros_like(torch.ones(3, device=NPU), dtype=torch.float64),
    "strided": lambda: torch.empty_strided((2, 2), (2, 1), dtype=torch.float64, device=NPU),
}


@pytest.mark.parametrize("make", FLOAT64.values(), ids=FLOAT64)
def test_float64_becomes_float32(make):
    with no_float64:
        assert make().dtype == torch.float32


MIXED = {
    "operator": lambda a, b: a + b,
    "convolution": lambda a, b: torch.nn.functional.conv2d(a, b.reshape(3, 3, 1, 1)[:1]),
    "in place": lambda a, b: a.add_(b),
    "out": lambda a, b: torch.add(a, a, out=torch.empty(0)),
    "list": lambda a, b: torch.cat([a, b]),
    "foreach": lambda a, b: torch._foreach_add([a], [b]),
    "where": lambda a, b: torch.where(a > 0, a, b),
    "into a number of the host": lambda a, b: torch.zeros(()).add_(a.sum()),
}


@pytest.mark.parametrize("there", ["cpu", "npu:1"])
@pytest.mark.parametrize("mix", MIXED.values(), ids=MIXED)
def test_devices_do_not_mix(mix, there):
    messages = "Expected all tensors to be on the same device|the result is on the npu|expected device"
    with pytest.raises(RuntimeError, match=messages):
        mix(torch.ones(1, 3, 3, 1, device=NPU), torch.ones(1, 3, 3, 1, device=there))


def test_numbers_of_the_host_mix():
    assert (torch.ones(2, device=NPU) * torch.tensor(3.0)).tolist() == [3, 3]
    assert torch.ones(2, device=NPU).add_(1.5).tolist() == [2.5, 2.5]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_fresh_memory_is_poisoned(dtype):
    for _ in range(3):  # from the second time on, memory that was used before
        tensor = torch.empty(1000, dtype=dtype, device=NPU)
        assert tensor.isnan().all()
        tensor.fill_(1)
        assert torch.empty_like(tensor.t()).isnan().all()
        assert torch.empty(10, dtype=dtype, pin_memory=True).isnan().all()


def test_indices_out_of_range_raise():
    x = torch.arange(4.0, device=NPU)
    for index in (4, -5):
        with pytest.raises(IndexError):
            x[torch.tensor([index], device=NPU)]
        with pytest.raises((IndexError, RuntimeError), match="out of"):
            x.index_select(0, torch.tensor([index], device=NPU))
        with pytest.raises(RuntimeError, match="out of bounds"):
            x.gather(0, torch.tensor([index], device=NPU))
    with pytest.raises(IndexError):
        x[4]


def test_views_share_and_results_given_as_out_grow():
    x = torch.zeros(4, 6, device=NPU)
    x.t()[2:4].fill_(1)
    x.view(2, 12)[1].unfold(0, 2, 2).mul_(3)
    x[:, 0].copy_(torch.arange(4.0))
    halves = x.split(3, dim=1)
    assert x.sum().item() == 22
    assert halves[1].data_ptr() == x[:, 3:].data_ptr()
    out = torch.empty(0, device=NPU)
    assert torch.cat(halves, dim=1, out=out).shape == (4, 6)
    assert torch.equal(out, x)
    assert torch.sort(torch.tensor([3.0, 1.0], device=NPU))[1].tolist() == [1, 0]
    assert torch.tensor([0, 2, 0, 5], device=NPU).nonzero().tolist() == [[1], [3]]
    assert x.shape == (4, 6)


def test_devices_are_counted_and_chosen():
    assert torch.npu.is_available()
    assert torch.npu.device_count() == torch.accelerator.device_count() == 2
    assert torch.accelerator.current_accelerator() == torch.device("npu")
    with pytest.raises(RuntimeError, match=r"npu:2 is not there: this machine has 2"):
        torch.ones(1, device="npu:2")
    with pytest.raises(RuntimeError, match=r"npu:2 is not there"):
        torch.npu.set_device(2)
    torch.npu.set_device("npu:1")
    assert torch.ones(1, device="npu").device == torch.device("npu:1")
    torch.accelerator.set_device_index(0)
    assert torch.npu.get_device_name() == torch.npu.get_device_name(1) == "simulated on CPU, not run on Ascend"


@pytest.fixture
def fresh_memory():
    torch.npu.empty_cache()
    torch.npu.reset_peak_memory_stats()
    return torch.npu.memory_allocated()


def test_memory_is_counted(fresh_memory):
    free, whole = torch.npu.mem_get_info()
    assert whole == 32 << 30
    tensor = torch.empty(1000, dtype=torch.float32, device=NPU)
    assert torch.npu.memory_allocated() - fresh_memory == 4096  # whole pieces of 512
    assert torch.accelerator.get_memory_info() == (free - 4096, whole)
    assert torch.npu.memory_allocated(1) == 0
    reserved = torch.npu.memory_reserved()
    del tensor
    assert torch.npu.memory_allocated() == fresh_memory
    assert torch.npu.max_memory_allocated() - fresh_memory == 4096
    assert torch.npu.memory_reserved() == reserved
    assert torch.npu.memory_stats()["allocated_bytes.all.peak"] == fresh_memory + 4096
    torch.npu.empty_cache()
    assert torch.npu.memory_reserved() == reserved - 4096
    torch.npu.reset_peak_memory_stats()
    assert torch.npu.max_memory_allocated() == fresh_memory


def test_memory_ends(fresh_memory, monkeypatch):
    monkeypatch.setenv("FAKE_NPU_MEMORY", str(fresh_memory + 8192))
    half = torch.empty(4096, dtype=torch.uint8, device=NPU)
    del half  # kept for the next of its size, and given up when there is need
    most = torch.empty(6000, dtype=torch.uint8, device=NPU)
    message = "NPU out of memory: tried to allocate 4096 bytes on npu:0, which has"
    with pytest.raises(torch.OutOfMemoryError, match=message):
        torch.empty(4096, dtype=torch.uint8, device=NPU)
    torch.empty(4096, dtype=torch.uint8, device="npu:1")
    assert torch.npu.mem_get_info()[0] < 4096
    assert most.numel() == 6000


def test_pinned_memory():
    for tensor in (torch.empty(3, pin_memory=True), torch.ones(3).pin_memory(), torch.zeros(2, 3).pin_memory()[1]):
        assert tensor.is_pinned()
    assert not torch.ones(3).is_pinned()
    assert not torch.ones(3, device=NPU).is_pinned()
    with pytest.raises(RuntimeError, match="pin"):
        torch.empty(3, device=NPU, pin_memory=True)
    dataset = torch.utils.data.TensorDataset(torch.ones(4, 3))
    assert next(iter(torch.utils.data.DataLoader(dataset, batch_size=2, pin_memory=True, num_workers=1)))[0].is_pinned()


def test_generators():
    torch.manual_seed(5)
    expected = torch.randn(8)
    first = torch.randn(8, device=NPU)
    assert torch.equal(first.cpu(), expected)  # each device has a generator of its own, all seeded alike
    state = torch.npu.get_rng_state()
    second = torch.randn(8, device=NPU)
    assert not torch.equal(first, second)
    torch.npu.set_rng_state(state)
    assert torch.equal(torch.randn(8, device=NPU), second)
    torch.npu.manual_seed(5)
    assert torch.equal(torch.randn(8, device=NPU), first)
    torch.npu.manual_seed_all(5)
    assert torch.equal(torch.randn(8, device="npu:1").cpu(), expected)
    generator = torch.Generator(NPU).manual_seed(5)
    assert generator.device == NPU
    assert torch.equal(torch.randn(8, device=NPU, generator=generator).cpu(), expected)
    assert not torch.equal(torch.randn(8, device=NPU, generator=generator), first)
    with torch.random.fork_rng(devices=[0], device_type="npu"):
        inside = torch.randn(8, device=NPU)
    assert torch.equal(torch.randn(8, device=NPU), inside)


def test_saving_and_loading():
    model = torch.nn.Conv2d(2, 2, 1).to("npu:1")
    file = io.BytesIO()
    torch.save({"weights": model.state_dict(), "half": torch.ones(2, dtype=torch.float16, device=NPU)}, file)
    for location, device in ((None, "npu:1"), ("cpu", "cpu"), ("npu:0", "npu:0"), ("npu", "npu:0")):
        file.seek(0)
        loaded = torch.load(file, map_location=location, weights_only=True)
        assert loaded["weights"]["weight"].device == torch.device(device)
        assert torch.equal(loaded["weights"]["weight"].cpu(), model.weight.cpu())
        assert loaded["half"].tolist() == [1, 1]
    twin = copy.deepcopy(model)
    assert twin.weight.device == model.weight.device
    assert torch.equal(twin.weight, model.weight)
    assert twin.weight.data_ptr() != model.weight.data_ptr()


def test_tensors_print():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch prints in float64
        assert str(torch.tensor([1.5, 2.0], device="npu:1")) == "tensor([1.5000, 2.0000], device='npu:1')"
        assert repr(torch.arange(3, device=NPU)) == "tensor([0, 1, 2], device='npu:0')"
    assert torch.ones(2).npu().is_npu
    assert torch.nn.Linear(1, 1).npu().weight.device == NPU
    with pytest.raises(TypeError, match="convert npu:0 device type tensor to numpy"):
        torch.ones(2, device=NPU).numpy()


def test_format_casts_check_what_they_are_given(monkeypatch):
    pictures = torch.rand(PICTURES, device=NPU)
    with pytest.warns(UserWarning, match="allow_internal_format"):
        torch_npu.npu_format_cast(pictures, 3)
    monkeypatch.setattr(torch.npu.config, "allow_internal_format", True)
    for number in (0, 2, 3, 4):
        assert torch.equal(torch_npu.npu_format_cast(pictures, number), pictures)
    for arguments, words in (
        ((pictures.cpu(), 3), "is on cpu"),
        ((pictures, 77), "no known format"),
        ((pictures[0], 3), "4-dimensional"),
    ):
        with pytest.raises(RuntimeError, match=words):
            torch_npu.npu_format_cast(*arguments)


def test_the_convolution_under_the_devices_name():
    x, b = torch.rand(2, 4, 5, 5, device=NPU), torch.rand(6, device=NPU)
    w = torch.rand(6, 2, 3, 3, device=NPU, requires_grad=True)
    y = torch.ops.npu.npu_convolution(x, w, b, [1, 1], [1, 1], [1, 1], 2)
    assert torch.equal(y, torch.nn.functional.conv2d(x, w, b, padding=1, groups=2))
    y.sum().backward()
    assert w.grad.shape == w.shape


def test_settings():
    torch.npu.set_compile_mode(jit_compile=False)
    torch.npu.set_compile_mode(jit_compile=False)
    with pytest.raises(RuntimeError, match="cannot be changed again"):
        torch.npu.set_compile_mode(jit_compile=True)
    torch.npu.set_option({"ACL_PRECISION_MODE": "must_keep_origin_dtype"})
    with pytest.raises(TypeError):
        torch.npu.set_option("ACL_PRECISION_MODE")


def test_profiling(tmp_path):
    level = torch_npu.profiler._ExperimentalConfig(profiler_level=torch_npu.profiler.ProfilerLevel.Level1)
    handler = torch_npu.profiler.tensorboard_trace_handler(str(tmp_path))
    with torch_npu.profiler.profile(experimental_config=level, on_trace_ready=handler) as profiler:
        torch.ones(3, device=NPU).sum().item()
    assert "aten::sum" in {event.name for event in profiler.events()}
    assert list(tmp_path.iterdir())
    with pytest.raises(TypeError, match="_ExperimentalConfig"):
        torch_npu.profiler.profile(experimental_config={})
    assert torch_npu.profiler.schedule(wait=1, warmup=0, active=1)(0) == torch.profiler.ProfilerAction.NONE


def test_measuring_is_without_hf32():
    assert torch.npu.conv.allow_hf32
    with pytest.raises(ZeroDivisionError, match="on the way"), devices.exact_float32(NPU):
        _fail(torch.npu.conv.allow_hf32)
    assert torch.npu.conv.allow_hf32


def _fail(shortened: bool) -> None:
    assert not shortened
    raise ZeroDivisionError("on the way")
