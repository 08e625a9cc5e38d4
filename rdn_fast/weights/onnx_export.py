"""`rdn-fast export`: an RDN as an ONNX file, compared with torch by running it in onnxruntime before it is written.

The graph is built node by node out of five plain operators that every opset has, under the weights' own names. (torch's
exporter, asked for opset 11, writes 18, the newest that Ascend's atc reads.)
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn

from rdn_fast import __version__, devices
from rdn_fast.errors import Failure, UserError, one_line
from rdn_fast.files import Kind, check_replaceable, check_writable, write_result
from rdn_fast.model import RDN, describe
from rdn_fast.precision import Precision
from rdn_fast.terminal import print_line
from rdn_fast.weights.convert import load_model
from rdn_fast.weights.shipped import check_scale, given_or_shipped

INPUT, OUTPUT = "image", "output"
OPSET = 13  # older versions of atc end there
_OLDEST = 11  # DepthToSpace knows pixel shuffle's order since then
_ATC_NEWEST = 18
_LIMIT = 1e-4  # largest difference from torch, of values in 0..1
_LARGEST = 65_535  # LR pixels of an edge
_FP16 = Precision("O1", torch.float16, torch.float32)
_KIND = Kind("an ONNX file that rdn-fast wrote", lambda head: b"rdn_fast" in head[:64])


def export(
    weights_file: str | None,
    output: str,
    dynamic: bool = False,
    size: Sequence[int] = (64, 64),
    opset: int | None = None,
    fp16: bool = False,
    model_name: str | None = None,
    scale: int | None = None,
) -> None:
    """Write the model of a weights file, or a shipped model, as ONNX, and print what was written.

    weights_file: None for the shipped model of that name and scale (None for both: x2). scale: else checked.
    Input `image`: float32 [1, 3, H, W], RGB in 0..1. Output `output`: float32 [1, 3, s*H, s*W], not clamped.
    size: (H, W). dynamic: batch, H and W may be anything. opset: None for 13.
    fp16: weights and arithmetic in half precision, the last convolution in float32.

    The result of onnxruntime must be within 1e-4 of torch's float32; with fp16 within 1e-4 plus twice the error of
    torch's own fp16. Raises UserError for a bad value, weights that are no RDN, a file that cannot be written and
    missing packages. Raises Failure when the result differs by more; `output` is then unchanged.
    """
    path, (height, width) = Path(output), size
    weights = given_or_shipped(weights_file, model_name, scale)
    opset = OPSET if opset is None else opset
    if path.suffix != ".onnx":
        raise UserError(f"--output {output}: give a name that ends in .onnx")
    check_writable(path, f"--output {output}")
    if not 1 <= min(size) <= max(size) <= _LARGEST:
        raise UserError(f"--size {height} {width}: height and width must be from 1 to {_LARGEST}")
    check_replaceable(path, _KIND, f"--output {output}")
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise UserError(f"export needs onnx and onnxruntime ({error}): pip install onnx onnxruntime") from None
    newest = onnx.defs.onnx_opset_version()
    if not _OLDEST <= opset <= newest:
        known = f"the newest that onnx {onnx.__version__} knows"
        raise UserError(f"--opset {opset}: must be from {_OLDEST} to {newest}, {known}")
    model = load_model(weights, devices.all_devices()[-1])  # the file is compared with the host's float32
    check_scale(scale, model.config.scale, "--scale")
    onnx_model = build(model, ("batch", "height", "width") if dynamic else (1, height, width), opset, fp16)
    onnx.checker.check_model(onnx_model, full_check=True)
    content = onnx_model.SerializeToString()
    shapes = [(1, height, width), (2, 19, 26) if dynamic else (1, height, width)]
    error, limit = _compare_with_torch(content, model, shapes, fp16)
    if not error <= limit:  # also when it is NaN
        remedy = "leave out --fp16" if fp16 else "please report it"
        differs = f"its result differs from torch's by {error:.2g}, more than {limit:.2g}"
        raise Failure(f"{output}: is not written, {differs}; {remedy}")
    write_result(path, content, f"--output {output}", _KIND)
    print_line(f"{output}: x{model.config.scale}, opset {opset}, {len(content) / 1e6:.1f} MB")
    print_line(f"  {_shape_in_words(onnx_model.graph.input[0])}, RGB in 0..1")
    print_line(f"  {_shape_in_words(onnx_model.graph.output[0])}, not clamped")
    between = f"onnxruntime {onnxruntime.__version__} and torch {torch.__version__}"
    print_line(f"  largest difference between {between}: {error:.1e} (limit {limit:.1e})")
    if opset <= _ATC_NEWEST:
        print_line("For Ascend (soc_version: the word Ascend and the chip's name in `npu-smi info`):")
        print_line(f"  {_atc_command(path, height, width, dynamic)}")


def _shape_in_words(value) -> str:
    """value: an onnx.ValueInfoProto -> `image: float32 [batch, 3, height, width]`."""
    edges = ", ".join(edge.dim_param or str(edge.dim_value) for edge in value.type.tensor_type.shape.dim)
    return f"{value.name}: float32 [{edges}]"


def build(model: RDN, shape: Sequence[int | str], opset: int, fp16: bool = False):
    """Return the model as an onnx.ModelProto of Conv, Relu, Concat, Add and DepthToSpace; with fp16 also of two Cast.

    Convolutions are named as their weights are. shape: batch, height and width of the input, each a number, or a name
    for any number.
    """
    from onnx import TensorProto, helper, numpy_helper

    nodes, weights = [], []

    def node(operator: str, name: str, *inputs: str, **attributes) -> str:
        """Add a node. Return the name of its output, which is its own."""
        nodes.append(helper.make_node(operator, inputs, [name], name, **attributes))
        return name

    low = torch.float16 if fp16 else torch.float32

    def conv(name: str, x: str, dtype: torch.dtype = low, output: str | None = None) -> str:
        layer = model.get_submodule(name)
        for key, value in layer.state_dict(prefix=f"{name}.").items():
            weights.append(numpy_helper.from_array(value.to(dtype).numpy(), key))
        attributes = {"kernel_shape": layer.kernel_size, "pads": layer.padding * 2}
        return node("Conv", output or name, x, f"{name}.weight", f"{name}.bias", **attributes)

    x = node("Cast", "half", INPUT, to=TensorProto.FLOAT16) if fp16 else INPUT
    if model.config.mean_shift:
        negative = -model.mean.to(low).reshape(1, 3, 1, 1)
        weights.append(numpy_helper.from_array(negative.numpy(), "minus_mean"))
        x = node("Add", "shifted", x, "minus_mean")
    shallow = conv("sfe1", x)  # [B, G0, H, W]
    y = conv("sfe2", shallow)
    local = []
    for i, rdb in enumerate(model.rdbs):
        features = y  # [B, G0 + j*G, H, W]
        for j in range(len(rdb.layers)):
            layer = f"rdbs.{i}.layers.{j}"
            new = node("Relu", f"{layer}.relu", conv(f"{layer}.conv", features))
            features = node("Concat", f"{layer}.features", features, new, axis=1)
        y = node("Add", f"rdbs.{i}", y, conv(f"rdbs.{i}.lff", features))
        local.append(y)
    y = node("Add", "deep", conv("gff.1", conv("gff.0", node("Concat", "local", *local, axis=1))), shallow)
    (batch, *edges), scale = shape, model.config.scale
    for i, layer in enumerate(model.upscale):  # ends as [B, U, s*H, s*W]; with tail "espcn" as [B, 3*s*s, H, W]
        if isinstance(layer, nn.PixelShuffle):
            y = node("DepthToSpace", f"upscale.{i}", y, blocksize=layer.upscale_factor, mode="CRD")
        elif isinstance(layer, nn.ReLU):
            y = node("Relu", f"upscale.{i}", y)
        else:
            y = conv(f"upscale.{i}", y)
    y = node("Cast", "float", y, to=TensorProto.FLOAT) if fp16 else y
    if model.config.tail == "espcn":
        y = conv("output", y, torch.float32, "output.conv")
        node("DepthToSpace", OUTPUT, y, blocksize=scale, mode="CRD")
    else:
        conv(OUTPUT, y, torch.float32)

    larger = [scale * edge if isinstance(edge, int) else f"{scale}*{edge}" for edge in edges]
    inputs, outputs = (
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, 3, *hw])]
        for name, hw in ((INPUT, edges), (OUTPUT, larger))
    )
    graph = helper.make_graph(nodes, "RDN", inputs, outputs, weights)
    # make_model_gen_version takes the oldest file format that has the opset.
    versions = {"opset_imports": [helper.make_opsetid("", opset)], "producer_version": __version__}
    made = helper.make_model_gen_version(graph, producer_name="rdn_fast", **versions)
    said = {
        "architecture": describe(model.config),
        "scale": str(scale),
        "value_range": "0..1",
        "colours": "RGB",
        "receptive_radius": str(model.receptive_radius),  # LR pixels
    }
    helper.set_model_props(made, said)
    return made


@torch.inference_mode()
def _compare_with_torch(
    content: bytes, model: RDN, shapes: Sequence[tuple[int, int, int]], fp16: bool
) -> tuple[float, float]:
    """Return the largest difference of the file's results from the model's in float32, and the limit for it.

    content: the file's. shapes: batch, height and width of the random images in 0..1 that are computed.
    """
    import onnxruntime

    running = f"onnxruntime {onnxruntime.__version__} cannot"
    try:
        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    except Exception as error:  # its classes have no other base
        reason = " ".join(str(error).split())
        raise UserError(f"{running} load the model: {reason}; give a smaller --opset") from None
    remedy = "give a smaller --size, or --dynamic"

    def onnxruntime_result(x: torch.Tensor) -> torch.Tensor:
        try:
            return torch.from_numpy(session.run(None, {INPUT: x.numpy()})[0])
        except Exception as error:  # as above
            raise UserError(f"{running} compute the model ({one_line(error)}); {remedy}") from None

    def torch_result(x: torch.Tensor, precision: Precision | None = None) -> torch.Tensor:
        with model.computing(precision, "naive"):
            return model(x)

    def largest_difference(result: Callable, images: list[torch.Tensor]) -> float:
        return torch.stack([(result(x) - torch_result(x)).abs().max() for x in images]).max().item()

    random = torch.Generator().manual_seed(0)
    try:
        images = [torch.rand(batch, 3, height, width, generator=random) for batch, height, width in shapes]
        error, limit = largest_difference(onnxruntime_result, images), _LIMIT
        if fp16:  # on crops: torch's fp16 is slow on most CPUs
            crops = [x[..., :32, :32] for x in images]
            limit += 2 * largest_difference(lambda x: torch_result(x, _FP16), crops)
    except RuntimeError as failure:
        if not devices.is_out_of_memory(failure):
            raise
        raise UserError(f"the check needs more memory than there is; {remedy}") from None
    return error, limit


def _atc_command(path: Path, height: int, width: int, dynamic: bool) -> str:
    """Return the command that compiles the file for Ascend, for one size; dynamic: for a list of sizes, here two."""
    files = f"--model={shlex.quote(str(path))} --framework=5 --output={shlex.quote(str(path.with_suffix('')))}"
    shape = f'--input_shape="{INPUT}:1,3,{height},{width}"'
    if dynamic:
        sizes = f"{height},{width};{2 * height},{2 * width}"
        shape = f'--input_shape="{INPUT}:1,3,-1,-1" --dynamic_image_size="{sizes}"'
    return f"atc {files} --input_format=NCHW {shape} --soc_version=Ascend310P3 --log=error"
