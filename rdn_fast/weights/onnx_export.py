"""An RDN as an ONNX file, run by onnxruntime beside torch before it is kept.

The graph is written node by node: five plain operators that every opset has, under the weights' own names. (torch's exporter, asked for
opset 11, writes 18, the newest that Ascend's atc reads.)
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from rdn_fast import __version__, devices
from rdn_fast.errors import Failure, UserError
from rdn_fast.files import write_result
from rdn_fast.model import RDN
from rdn_fast.weights.convert import load_model

INPUT, OUTPUT = "image", "output"
_LIMIT = 1e-4  # largest difference from torch, of values in 0..1
_OLDEST, OPSET, _ATC_NEWEST = (
    11,
    13,
    18,
)  # DepthToSpace knows pixel shuffle's order since 11; older versions of atc end at 13
_LARGEST = 65_535


def export(
    weights_file: str | None,
    output: str,
    dynamic: bool = False,
    size: Sequence[int] = (64, 64),
    opset: int | None = None,
    fp16: bool = False,
) -> None:
    """Write the model of a weights file (None: the small x2 one that comes with the package) as ONNX, and say what was written.

    Input `image`: float32 [1, 3, H, W], RGB in 0..1; output `output`: float32 [1, 3, scale*H, scale*W], not clamped. `size` is (H, W);
    `dynamic`: batch, H and W may be anything. `fp16`: weights and arithmetic in half precision, the last convolution in float32.
    What onnxruntime computes must be within 1e-4 of torch's float32 (fp16: within 1e-4 and twice the error of torch's own fp16).

    Raises UserError for a bad value, weights that are no RDN, a file that cannot be written or packages that are missing, and
    Failure when the check fails; `output` is then as it was.
    """
    path, (height, width) = Path(output), size
    if path.suffix != ".onnx":
        raise UserError(f"--output {output}: give a name that ends in .onnx")
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"--output {output}: there is no such folder, or it cannot be written; name another file")
    if not 1 <= min(size) <= max(size) <= _LARGEST:
        raise UserError(f"--size {height} {width}: height and width must be from 1 to {_LARGEST}")
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise UserError(f"export needs onnx and onnxruntime ({error}): pip install onnx onnxruntime") from None
    newest, opset = onnx.defs.onnx_opset_version(), OPSET if opset is None else opset
    if not _OLDEST <= opset <= newest:
        raise UserError(
            f"--opset {opset}: must be from {_OLDEST} to {newest}, the newest that onnx {onnx.__version__} knows"
        )
    model = load_model(weights_file, devices.all_devices()[-1])  # the host's float32 is what the file is compared with
    made = build(model, ("batch", "height", "width") if dynamic else (1, height, width), opset, fp16)
    onnx.checker.check_model(made, full_check=True)
    content = made.SerializeToString()
    error, limit = _check(content, model, [(1, height, width), (2, 19, 26) if dynamic else (1, height, width)], fp16)
    if not error <= limit:  # NaN is too large
        remedy = "leave out --fp16" if fp16 else "please report it"
        raise Failure(
            f"{output}: is not written, its result differs from torch's by {error:.2g}, more than {limit:.2g}; {remedy}"
        )
    write_result(path, content, f"--output {output}")
    print(f"{output}: x{model.config.scale}, opset {opset}, {len(content) / 1e6:.1f} MB")
    for value, said in ((made.graph.input[0], "RGB in 0..1"), (made.graph.output[0], "not clamped")):
        edges = ", ".join(edge.dim_param or str(edge.dim_value) for edge in value.type.tensor_type.shape.dim)
        print(f"  {value.name}: float32 [{edges}], {said}")
    print(
        f"  largest difference between onnxruntime {onnxruntime.__version__} and torch {torch.__version__}: {error:.1e} (limit {limit:.1e})"
    )
    if opset <= _ATC_NEWEST:
        print("For Ascend (soc_version: the word Ascend and the chip's name in `npu-smi info`):")
        print(f"  {_atc(path, height, width, dynamic)}")


def build(model: RDN, shape: Sequence[int | str], opset: int, fp16: bool = False):
    """The model as an onnx.ModelProto of Conv, Relu, Concat, Add and DepthToSpace (fp16: and two Cast), which are named as its weights are.

    shape: batch, height and width of the input, each a number or a name for any number.
    """
    from onnx import TensorProto, helper, numpy_helper

    nodes, weights = [], []

    def node(operator: str, name: str, *inputs: str, **attributes) -> str:
        """A node, and its output of the same name."""
        nodes.append(helper.make_node(operator, inputs, [name], name, **attributes))
        return name

    def conv(name: str, x: str, dtype: torch.dtype = torch.float16 if fp16 else torch.float32) -> str:
        layer = model.get_submodule(name)
        for key, value in layer.state_dict(prefix=f"{name}.").items():
            weights.append(numpy_helper.from_array(value.to(dtype).numpy(), key))
        return node(
            "Conv", name, x, f"{name}.weight", f"{name}.bias", kernel_shape=layer.kernel_size, pads=layer.padding * 2
        )

    shallow = conv("sfe1", node("Cast", "half", INPUT, to=TensorProto.FLOAT16) if fp16 else INPUT)  # [B, G0, H, W]
    y = conv("sfe2", shallow)
    local = []
    for i, rdb in enumerate(model.rdbs):
        features = y  # [B, G0 + j*G, H, W]
        for j in range(len(rdb.layers)):
            layer = f"rdbs.{i}.layers.{j}"
            features = node(
                "Concat",
                f"{layer}.features",
                features,
                node("Relu", f"{layer}.relu", conv(f"{layer}.conv", features)),
                axis=1,
            )
        y = node("Add", f"rdbs.{i}", y, conv(f"rdbs.{i}.lff", features))
        local.append(y)
    y = node("Add", "deep", conv("gff.1", conv("gff.0", node("Concat", "local", *local, axis=1))), shallow)
    for i, layer in enumerate(model.upscale):
        name = f"upscale.{i}"  # ends as [B, U, s*H, s*W]
        y = (
            conv(name, y)
            if isinstance(layer, nn.Conv2d)
            else node("DepthToSpace", name, y, blocksize=layer.upscale_factor, mode="CRD")
        )
    conv(OUTPUT, node("Cast", "float", y, to=TensorProto.FLOAT) if fp16 else y, torch.float32)

    (batch, *edges), scale = shape, model.config.scale
    larger = [scale * edge if isinstance(edge, int) else f"{scale}*{edge}" for edge in edges]
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, 3, *hw])
        for name, hw in ((INPUT, edges), (OUTPUT, larger))
    ]
    graph = helper.make_graph(nodes, "RDN", values[:1], values[1:], weights)
    versions = {
        "opset_imports": [helper.make_opsetid("", opset)],
        "producer_name": "rdn_fast",
        "producer_version": __version__,
    }
    return helper.make_model_gen_version(graph, **versions)  # in the oldest file format that has the opset


@torch.inference_mode()
def _check(content: bytes, model: RDN, shapes: Sequence[tuple[int, int, int]], fp16: bool) -> tuple[float, float]:
    """The largest difference of the file's results from the model's in float32, on random images of [batch, height, width], and its limit."""
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    except Exception as error:  # its own classes have nothing else in common
        reason = " ".join(str(error).split())
        raise UserError(
            f"onnxruntime {onnxruntime.__version__} cannot load the model: {reason}; give a smaller --opset"
        ) from None
    model.rdb, smaller = "naive", "give a smaller --size, or --dynamic"

    def expected(x, dtype=torch.float32):
        model.compute_dtype, model.output_dtype = dtype, torch.float32
        return model(x)

    def worst(function, images) -> float:
        return torch.stack([(function(x) - expected(x)).abs().max() for x in images]).max().item()

    def computed(x):
        try:
            return torch.from_numpy(session.run(None, {INPUT: x.numpy()})[0])
        except Exception as failure:  # of its own classes again
            reason = " ".join(str(failure).split())[:200]
            raise UserError(
                f"onnxruntime {onnxruntime.__version__} cannot compute the model ({reason}); {smaller}"
            ) from None

    random = torch.Generator().manual_seed(0)
    try:
        images = [torch.rand(batch, 3, height, width, generator=random) for batch, height, width in shapes]
        error, limit = worst(computed, images), _LIMIT
        if fp16:  # on crops, as torch's fp16 is slow on most CPUs
            limit += 2 * worst(lambda x: expected(x, torch.float16), [x[..., :32, :32] for x in images])
    except RuntimeError as failure:
        if not devices.is_out_of_memory(failure):
            raise
        raise UserError(f"the check needs more memory than there is; {smaller}") from None
    return error, limit


def _atc(path: Path, height: int, width: int, dynamic: bool) -> str:
    """The command that compiles the file for Ascend: for one size; dynamic: for a list of sizes, here two."""
    files = f"--model={shlex.quote(str(path))} --framework=5 --output={shlex.quote(str(path.with_suffix('')))}"
    shape = f'--input_shape="{INPUT}:1,3,{height},{width}"'
    if dynamic:
        shape = f'--input_shape="{INPUT}:1,3,-1,-1" --dynamic_image_size="{height},{width};{2 * height},{2 * width}"'
    return f"atc {files} --input_format=NCHW {shape} --soc_version=Ascend310P3 --log=error"
