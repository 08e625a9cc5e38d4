"""hopper: its kernels as NVRTC compiles them for sm_90a, and its results on a host, from the same source (host/)."""

import re
import shutil
import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path

import hopper_host
import hopper_plain
import pytest
import torch
from test_rdb import _poisoned_memory, block, in_float64, problem, solve  # noqa: F401 (a fixture)

from bench.parity import assert_as_good_as_naive
from rdn_fast import devices
from rdn_fast.devices import cuda_kernels
from rdn_fast.errors import UserError
from rdn_fast.rdb import IMPLS, LOW, hopper, hopper_layout, hopper_trial, naive, refusal
from rdn_fast.rdb.hopper_layout import CHANNELS, GRADIENT_MEMORY, SUM_MEMORY, THREADS, Packing

CUDA = torch.device("cuda")
CPU = torch.device("cpu")
MEMORY, REGISTERS = 232_448, 65_536  # of a block on compute capability 9.0: bytes of shared memory; a multiprocessor's
KERNELS = {  # products of each kernel: of one tap and of nine with 32 channels; of five and four taps and of one
    "layer": {"64x256x16": 2 + 18},
    "residual": {"64x256x16": 2 + 18},
    "gradient": {"64x256x16": 2 + 18},
    "layer_weights": {"64x64x16": 16 * 9},
    "fusion_weights": {"64x64x16": 16},
}

# batch, G0, G, C, H, W: whole tiles; two planes of x, and tiles that the image does not fill; several small images
SHAPES_HERE = ((1, 64, 64, 2, 32, 32), (1, 70, 37, 2, 33, 18), (2, 13, 18, 3, 5, 7))
SMALL = (1, 64, 64, 2, 8, 8)


def why_no_compiler() -> str | None:
    try:
        cuda_kernels.nvrtc_version()
    except OSError as error:
        return f"needs NVRTC, which CUDA builds of torch bring, or pip install nvidia-cuda-nvrtc: {error}"
    return None


needs_nvrtc = pytest.mark.skipif(why_no_compiler() is not None, reason=str(why_no_compiler()))
needs_host = pytest.mark.skipif(hopper_host.compiler() is None, reason="needs a C++ compiler (g++, or what $CXX names)")


@pytest.fixture(scope="module", params=LOW, ids=str)
def compiled(request):
    """Return the machine code for sm_90a of all kernels for a dtype, and the assembler's report."""
    return cuda_kernels.compile_cubin(
        hopper.SOURCE, hopper.HEADER, [*hopper.options(request.param), "--ptxas-options=-v"]
    )


@pytest.mark.slow
@needs_nvrtc
def test_kernels_fit_and_keep_all_in_registers(compiled):
    _, log = compiled
    reports = dict(re.findall(r"entry function '(\w+)'(.*?)(?=Compiling|\Z)", log, re.DOTALL))
    assert reports.keys() == KERNELS.keys()
    for name, report in reports.items():
        spilled = [int(number) for number in re.findall(r"(\d+) bytes (?:stack frame|spill)", report)]
        registers = int(re.search(r"Used (\d+) registers", report)[1])
        print(f"{name}: {registers} registers, {spilled[0]} B of stack")
        assert spilled == [0, 0, 0], report
        assert registers * THREADS <= REGISTERS, report
    assert not re.search(r"C75\d\d|serialized|warning", log), log  # products that wait, a setmaxnreg that is ignored
    assert max(SUM_MEMORY, GRADIENT_MEMORY) <= MEMORY


def disassembler() -> str | None:
    """Return nvdisasm: of the path, of triton, or of the package nvidia-cuda-nvdisasm."""
    parts = "triton/backends/nvidia/bin/nvdisasm", "nvidia/*/bin/nvdisasm"
    found = (str(file) for folder in sys.path for part in parts for file in Path(folder).glob(part))
    return shutil.which("nvdisasm") or next(found, None)


@pytest.mark.slow
@needs_nvrtc
@pytest.mark.skipif(disassembler() is None, reason="needs nvdisasm: pip install nvidia-cuda-nvdisasm")
def test_machine_code_has_the_products_and_no_local_memory(compiled, tmp_path):
    cubin, _ = compiled
    (tmp_path / "cubin").write_bytes(cubin)
    text = subprocess.run([disassembler(), "-c", tmp_path / "cubin"], capture_output=True, text=True, check=True).stdout
    parts = re.split(r"\.text\.(\w+):", text)[1:]
    for name, code in zip(parts[::2], parts[1::2], strict=True):
        words = re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?(\S+)", code, re.MULTILINE)
        print(f"{name}: {len(words)} instructions")
        assert Counter(word.split(".")[1] for word in words if word.startswith("HGMMA")) == KERNELS[name]
        assert not {word.split(".")[0] for word in words} & {"LDL", "STL", "HMMA"}, name


@pytest.mark.slow
@needs_nvrtc
def test_a_file_that_does_not_compile_is_one_line(tmp_path):
    (tmp_path / "wrong.cu").write_text("__global__ void f() {\n    no_such_function();\n}\n")
    with pytest.raises(UserError) as told:
        cuda_kernels.compile_cubin(tmp_path / "wrong.cu", hopper.HEADER, hopper.options(torch.float16))
    assert re.fullmatch(r'wrong\.cu cannot be compiled: .*"no_such_function".*; choose another --rdb', str(told.value))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("hopper")


@pytest.fixture
def on_host(monkeypatch, folder):
    """Let launches run the kernels on the host; on_host(old, new) changes a line of their source before.

    patience: seconds until a thread is said to wait for ever.
    """

    def use(*change, patience=100):
        library = hopper_host.library(folder, *change, patience=patience)
        monkeypatch.setattr(hopper, "launch", partial(hopper_host.launch, library))

    use()
    return use


@pytest.mark.slow
@needs_host
@pytest.mark.parametrize("dtype", LOW, ids=str)
@pytest.mark.parametrize("shape", SHAPES_HERE, ids=str)
@pytest.mark.usefixtures("on_host")
def test_output_and_gradients_are_as_good_as_naives_on_a_host(shape, dtype, seed):
    """Of parameters in float32, packed as a model's are, and once of parameters in the same dtype as x."""
    arguments, upstream = problem(shape, dtype, seed)
    oracle = solve(block, *in_float64(arguments, upstream))
    plain = solve(naive.rdb, arguments, upstream, torch.channels_last)
    parameters = dtype if shape == SHAPES_HERE[-1] else torch.float32

    def rdb(x, conv_w, conv_b, fuse_w, fuse_b):
        packed = None if parameters == dtype else hopper.pack([(conv_w, fuse_w)], dtype)[0]
        return hopper.rdb(x, conv_w, conv_b, fuse_w, fuse_b, packed)

    given = {name: tensor if name == "x" else tensor.to(parameters) for name, tensor in arguments.items()}
    for name, result in solve(rdb, given, upstream, torch.channels_last).items():
        assert result.dtype == (dtype if name in ("y", "gradient of x") else parameters), name
        assert_as_good_as_naive(result, oracle[name], plain[name], dtype, f"{name}, {shape}, seed {seed}")


@pytest.mark.slow
@needs_host
@pytest.mark.usefixtures("on_host")
def test_nan_spreads_as_in_naive(seed):
    """To the output and to every gradient: a ReLU that made it zero would hide that training diverges."""
    arguments, upstream = problem(SMALL, torch.float16, seed)
    arguments["x"][0, 0, 4, 4] = float("nan")
    plain = solve(naive.rdb, arguments, upstream)
    for name, result in solve(hopper.rdb, arguments, upstream).items():
        assert bool((result.isnan() >= plain[name].isnan()).all()), name
        torch.testing.assert_close(result, plain[name], rtol=0.05, atol=0.05, equal_nan=True)


FAULTS = {
    "a stage that is not freed": ("if (step > 0 && ", "if (step > 1 && "),
    "products that are not waited for": ("products_wait<1>();", "products_wait<3>();"),
    "the other parity": ("barrier_wait(empty, parity ^ 1)", "barrier_wait(empty, parity)"),
    "taps by columns": ("place / 3 * PITCH + place % 3 * PIXEL", "place % 3 * PITCH + place / 3 * PIXEL"),
    "a wrong core matrix": ("PIXEL, GROUP, PITCH)", "PIXEL, PITCH, GROUP)"),
    "a lane's wrong address": ("row = matrix / 2, column", "row = matrix % 2, column"),
    "too large a stage": ("STEP = PIXELS + 9 * TAP,", "STEP = PIXELS + 10 * TAP,"),
}


@pytest.mark.slow
@needs_host
@pytest.mark.parametrize("change", FAULTS.values(), ids=FAULTS)
def test_faults_in_the_kernels_are_noticed_on_a_host(change, on_host, seed):
    on_host(*change, patience=5)
    arguments, upstream = problem(SMALL, torch.float16, seed)
    right = solve(block, *in_float64(arguments, upstream), trains=False)["y"]
    plain = solve(naive.rdb, arguments, upstream, trains=False)["y"]

    def check():
        wrong = solve(hopper.rdb, arguments, upstream, trains=False)["y"]
        assert_as_good_as_naive(wrong, right, plain, torch.float16, "y")

    # Which kernel stops first, and why, depends on the order in which the threads run.
    seen = r"(layer|residual): [a-z ]+$|y: relative error"
    with pytest.raises(AssertionError, match=seen):
        check()


@pytest.mark.slow
@needs_host
@pytest.mark.usefixtures("on_host")
def test_the_trial_passes_and_notices_a_fault(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["trial", "cpu"])
    monkeypatch.setattr(hopper_trial, "SHAPES", ((1, 40, 9, 7),))
    monkeypatch.setattr(hopper_trial, "REPEATS", 1)
    assert hopper_trial.main() == 0
    right, calls = hopper.launch, []

    def moves(*given):
        right(*given)
        calls.append(given[0])
        if calls.count("fusion_weights") == 2:  # in the repetition
            given[-6].view(-1)[:8] += 0.01

    monkeypatch.setattr(hopper, "launch", moves)
    assert hopper_trial.main() == 1
    assert capsys.readouterr().out == "the gradient of the fusion's weights (1) differs from run to run\n"


@pytest.mark.parametrize("dtype", LOW, ids=str)
@pytest.mark.parametrize("shape", [(1, 64, 64, 2, 7, 5), (2, 70, 37, 2, 5, 9), (3, 130, 18, 2, 4, 6)], ids=str)
def test_launches_in_plain_torch_give_what_naive_gives(shape, dtype, monkeypatch, seed):
    monkeypatch.setattr(hopper, "launch", hopper_plain.launch)
    arguments, upstream = problem(shape, dtype, seed)
    oracle = solve(block, *in_float64(arguments, upstream))
    plain = solve(naive.rdb, arguments, upstream, torch.channels_last)
    for name, result in solve(hopper.rdb, arguments, upstream, torch.channels_last).items():
        assert_as_good_as_naive(result, oracle[name], plain[name], dtype, f"{name}, {shape}, seed {seed}")


def check_launches(monkeypatch, shape, dtype, device, seed) -> set[str]:
    """Compare what each launch of a block writes with plain torch. The message tells where it is wrong first."""
    right, launched = hopper.launch, []

    def compare(name, grid, memory, *arguments):
        expected = hopper_plain.expected(name, *arguments)
        right(name, grid, memory, *arguments)
        for written, value in expected:
            found = written.sum(0) if written.dim() == 2 else written
            wrong = ((found.float() - value.float()).abs() <= 2e-2 * value.abs().max()).logical_not()  # a NaN is wrong
            where = [indices.unique().tolist() for indices in wrong.nonzero().T]
            what = "sums" if written.dim() == 2 else "[image, group, channel, row, column]"
            numbers = f"{int(wrong.sum())} of {wrong.numel()}"
            assert not wrong.any(), f"launch {len(launched)}, {name}, {what}: {numbers} are wrong, at {where}"
        launched.append(name)

    monkeypatch.setattr(hopper, "launch", compare)
    arguments, upstream = problem(shape, dtype, seed)
    solve(hopper.rdb, arguments, upstream, torch.channels_last, device=device)
    return {*launched}


@pytest.mark.slow
@needs_host
@pytest.mark.usefixtures("on_host")
def test_each_launch_on_a_host(monkeypatch, seed):
    assert check_launches(monkeypatch, SMALL, torch.float16, CPU, seed) == KERNELS.keys()


@pytest.mark.slow
@needs_host
def test_the_comparison_of_launches_tells_where_one_is_wrong(monkeypatch, on_host, seed):
    on_host("input = 8 * (e / 4)", "input = 8 * (e / 4 ^ 1)")
    with pytest.raises(AssertionError, match=r"launch 6, layer_weights, sums: \d+ of 110592 are wrong, at "):
        check_launches(monkeypatch, SMALL, torch.float16, CPU, seed)


@pytest.mark.skipif(cuda_kernels.missing_toolchain((9, 0)) is not None, reason="needs a Hopper GPU")
@pytest.mark.parametrize("dtype", LOW, ids=str)
@pytest.mark.parametrize("shape", SHAPES_HERE, ids=str)
def test_each_launch_on_a_card(shape, dtype, monkeypatch, seed):
    """The trial's verdict is one line; this tells which kernel is wrong, and where."""
    assert check_launches(monkeypatch, shape, dtype, CUDA, seed) == KERNELS.keys()


@pytest.mark.parametrize(("g0", "g", "layers"), [(64, 64, 2), (70, 37, 2), (13, 18, 3), (130, 5, 1)])
def test_packed_weights_lie_where_the_kernels_read_them(g0, g, layers, seed):
    """A step reads [taps, 4 groups, 64 outputs, 8 inputs]: 32 inputs; the gradient of a plane reads them turned."""
    generator = torch.Generator().manual_seed(seed)
    convs = [torch.rand(g, g0 + i * g, 3, 3, generator=generator) for i in range(layers)]
    fusion = torch.rand(g0, g0 + layers * g, 1, 1, generator=generator)
    (packed,) = hopper.pack([(convs, fusion)], torch.float32)
    convs, fusion = [w.permute(0, 2, 3, 1) for w in convs], fusion[..., 0, 0]
    x = -(-g0 // CHANNELS)
    begins = [*range(0, g0, CHANNELS), *(g0 + i * g for i in range(layers))]

    def channels(plane: int) -> int:
        return min(CHANNELS, g0 - begins[plane]) if plane < x else g

    for i in range(layers):
        for plane in range(x + i):
            first, n = 9 * CHANNELS**2 * (Packing.tiles_before(i, x) + plane), channels(plane)
            tile = packed[first : first + 9 * CHANNELS**2].view(2, 9, 4, CHANNELS, 8)  # half, tap, group, output, input
            found = tile.permute(3, 1, 0, 2, 4).reshape(CHANNELS, 3, 3, CHANNELS)
            assert torch.equal(found[:g, ..., :n], convs[i][..., begins[plane] : begins[plane] + n])
            assert not found[g:].any()
            assert not found[..., n:].any()
    turned, at = packed[len(packed) // 2 :], 0
    for plane in hopper_layout.gradient_order(x, x + layers):
        for q in range(x):
            tile = turned[at : at + CHANNELS**2].view(2, 4, CHANNELS, 8).permute(2, 0, 1, 3).reshape(CHANNELS, CHANNELS)
            begin, n, m = begins[plane], channels(plane), channels(q)
            expected = fusion[q * CHANNELS : q * CHANNELS + m, begin : begin + n]
            assert torch.equal(tile[:n, :m], expected.T)
            at += CHANNELS**2
        for i in reversed(range(max(0, plane - x + 1), layers)):
            tile = turned[at : at + 9 * CHANNELS**2].view(2, 9, 4, CHANNELS, 8).permute(3, 1, 0, 2, 4)
            found = tile.reshape(CHANNELS, 3, 3, CHANNELS)[: channels(plane), ..., :g]
            expected = convs[i][..., begins[plane] : begins[plane] + channels(plane)]
            assert torch.equal(found, expected.permute(3, 1, 2, 0).flip(1, 2))
            at += 9 * CHANNELS**2
    assert at == len(turned)


def test_no_images_are_no_launches():
    arguments, _ = problem((1, 70, 37, 2, 3, 4), torch.float16, 0)
    arguments["x"] = arguments["x"][:0]
    results = solve(hopper.rdb, arguments, torch.empty(0, 70, 3, 4, dtype=torch.float16))
    assert results["y"].shape == (0, 70, 3, 4)
    assert not any(result.any() for result in results.values())


def test_wider_layers_are_refused():
    arguments, upstream = problem((1, 8, 65, 1, 2, 2), torch.float16, 0)
    with pytest.raises(UserError, match=r"--rdb hopper: .* growth rates up to 64, not 65; "):
        solve(hopper.rdb, arguments, upstream)


@pytest.fixture
def card(monkeypatch):
    """card(capability): let a card of that compute capability be current, on which the trial has a flaw."""

    def use(capability):
        monkeypatch.setattr(cuda_kernels, "current_gpu", lambda: torch.device("cuda", 0))
        monkeypatch.setattr(hopper, "current_gpu", lambda: torch.device("cuda", 0))
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda card: capability)

    return use


def reason():
    return refusal(IMPLS["hopper"], CUDA, torch.float16, training=True)


@pytest.mark.parametrize("capability", [None, (8, 0), (10, 0)])
def test_only_hopper_is_offered_it(capability, card):
    if capability:
        card(capability)
    elif devices.current_gpu():
        pytest.skip("here is a card")
    assert reason() == "runs on GPUs of compute capability 9.0 only"


def test_a_missing_library_leaves_it_out(card, monkeypatch):
    card((9, 0))
    monkeypatch.setattr(cuda_kernels, "_nvrtc", lambda: cuda_kernels.ctypes.CDLL("libno-such.so.13"))
    assert reason().startswith("needs NVRTC and the driver's libcuda: libno-such.so.13: cannot open shared object file")


def test_on_a_card_it_runs_only_after_its_trial(card, monkeypatch):
    card((9, 0))
    tried = []
    monkeypatch.setattr(hopper, "missing_toolchain", lambda capability: None)
    monkeypatch.setattr(hopper, "nvrtc_version", lambda: "13.0")
    monkeypatch.setattr(hopper, "flaw_on", lambda *trial: tried.append(trial) or "fails in a trial")
    hopper._version.cache_clear()
    assert reason() == "fails in a trial"
    ((device, name, module, version),) = tried
    assert (device, name, module) == (torch.device("cuda", 0), "--rdb hopper", "rdn_fast.rdb.hopper_trial")
    assert re.fullmatch(r"[0-9a-f]{12}, NVRTC 13\.0", version)
    hopper._version.cache_clear()


def test_a_trial_that_gets_no_card_is_a_flaw(monkeypatch, capsys):
    if devices.count("cuda"):
        pytest.skip("here is one")
    monkeypatch.setattr("sys.argv", ["trial", "cuda:0"])
    assert hopper_trial.main() == 1
    assert capsys.readouterr().out.startswith("a second process cannot use it: --device cuda:0: ")
