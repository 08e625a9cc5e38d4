"""The kernels of npu_conv, as text in the IR that Ascend's compiler bishengir-compile takes (MLIR).

Triton has no convolution; this IR has one, Conv2dL1: it reads a tile from the core's L1 memory, LOAD3D does the
img2col, and the matrix unit sums all nine taps in float32. npu_conv describes planes and the order of weights.
A line `@name = formula` stands for an affine.apply: the computation of an address or an index.

Two rules of the compiler shape the text. A sum must be one scf.for whose only iter_arg is the accumulator, or it calls
library functions that do not exist. The output is an argument of its own, or each load waits for the last store.
"""

from __future__ import annotations

import re
from functools import cache
from string import Template

import torch

HEAD = 2  # rows of zeros before a plane's first image
STEP = 256  # pixels that a product of the weight gradient sums; planes are padded to a multiple
FLOATS = {torch.float16: "f16", torch.bfloat16: "bf16"}

_FUNCTION = """module {
func.func @npu_conv_$kind(%arg0: memref<?xi8>, %arg1: memref<?xi8>, $arguments,
    %grid0: i32, %grid1: i32, %grid2: i32, %program0: i32, %program1: i32, %program2: i32)
    attributes {SyncBlockLockArgIdx = 0 : i64, WorkspaceArgIdx = 1 : i64, global_kernel = "local",
        mix_mode = "$mode", parallel_mode = "simd"} {
  $indices
  %first = arith.index_cast %program0 : i32 to index
  %programs = arith.index_cast %grid0 : i32 to index
  %zero = arith.constant 0 : index
  %one = arith.constant 1 : index
  scf.for %item = %first to %items step %programs {
    $body
  }
  return
}
}
"""

_SUM_TYPES = """
!memory = memref<?x$float>
!x_view = memref<${in_pixels}x${k}x$float, strided<[$k, 1], offset: ?>>
!x_blocks = memref<${kb}x${in_blocks}x16x16x$float>
!x_flat = memref<${kb}x${in_pixels}x16x$float>
!x_tile = memref<1x${kb}x${in_rows}x${width}x16x$float>
!x = tensor<1x${kb}x${in_rows}x${width}x16x$float>
!w_view = memref<${w_rows}x${k}x$float, strided<[$k, 1], offset: ?>>
!w_blocks = memref<${kb}x${w_blocks}x16x16x$float>
!w_flat = memref<${kb}x${w_rows}x16x$float>
!w_tile = memref<${kb}x${side}x${side}x${k}x16x$float>
!w = tensor<${kb}x${side}x${side}x${k}x16x$float>
!sum = tensor<${pixels}x${k}xf32>
!mask = tensor<${pixels}x${k}xi1>
!tile = memref<${pixels}x${k}x$float>
!tile_view = memref<${pixels}x${k}x$float, strided<[$k, 1], offset: ?>>
!low = tensor<${pixels}x${k}x$float>
"""

_SUM = """
    @chunk = item floordiv tiles
    @tile = item mod tiles
    @image = tile floordiv blocks
    @row = min((tile mod blocks) * $rows, height - $rows)
    @at = (image * (height + 1) + row + $head) * $row_size
    @here = chunk * plane + at
    @table = chunk * $tile_size
    %empty = tensor.empty() : !sum
    %sum = scf.for %s = %zero to %sources step %one iter_args(%acc = %empty) -> (!sum) {
      @x_at = s * plane + at - $halo_size
      %x_view = memref.reinterpret_cast $planes to
          offset: [%x_at], sizes: [$in_pixels, $k], strides: [$k, 1] : !memory to !x_view
      %x_blocks = memref.alloc() : !x_blocks
      hivm.hir.nd2nz {dst_continuous} ins(%x_view : !x_view) outs(%x_blocks : !x_blocks)
      %x_flat = memref.collapse_shape %x_blocks [[0], [1, 2], [3]] : !x_blocks into !x_flat
      %x_tile = memref.expand_shape %x_flat [[0, 1], [2, 3], [4]]
          output_shape [1, $kb, $in_rows, $width, 16] : !x_flat into !x_tile
      %x = bufferization.to_tensor %x_tile restrict writable : !x_tile
      @w_at = chunk * chunk_weights + s * $weights_size
      %w_view = memref.reinterpret_cast $weights to
          offset: [%w_at], sizes: [$w_rows, $k], strides: [$k, 1] : !memory to !w_view
      %w_blocks = memref.alloc() : !w_blocks
      hivm.hir.nd2nz {dst_continuous} ins(%w_view : !w_view) outs(%w_blocks : !w_blocks)
      %w_flat = memref.collapse_shape %w_blocks [[0], [1, 2], [3]] : !w_blocks into !w_flat
      %w_tile = memref.expand_shape %w_flat [[0], [1, 2, 3], [4]]
          output_shape [$kb, $side, $side, $k, 16] : !w_flat into !w_tile
      %w = bufferization.to_tensor %w_tile restrict writable : !w_tile
      %begin = arith.cmpi eq, %s, %zero : index
      %next = hivm.hir.Conv2dL1 {groups = 1 : i32, outputAlreadyNormalized, padding = [0 : i32, $halo : i32]}
          ins(%x, %w, %begin : !x, !w, i1) outs(%acc : !sum) -> !sum
      scf.yield %next : !sum
    }
    $loads
    %with_term = arith.addf %sum, %term_tile : !sum
    $epilogue
    %rounded = arith.truncf %result : !sum to !low
    %y_view = memref.reinterpret_cast $y to
        offset: [%here], sizes: [$pixels, $k], strides: [$k, 1] : !memory to !tile_view
    bufferization.materialize_in_destination %rounded in writable %y_view : (!low, !tile_view) -> ()
"""

_LOAD_TILE = """
    %${name}_view = memref.reinterpret_cast $argument to
        offset: [%$at], sizes: [$pixels, $k], strides: [$k, 1] : !memory to !tile_view
    %${name}_buffer = memref.alloc() : !tile
    memref.copy %${name}_view, %${name}_buffer : !tile_view to !tile
    %${name}_low = bufferization.to_tensor %${name}_buffer restrict writable : !tile
    %${name}_tile = arith.extf %${name}_low : !low to !sum
"""

_RELU = """
    %result = hfusion.elemwise_unary {fun = #hfusion.unary_fn<relu>} ins(%with_term : !sum) outs(%empty : !sum) -> !sum
"""
_RESIDUAL = """
    %result = arith.addf %with_term, %gate_tile : !sum
"""
_MASKED = """
    %nothing = arith.constant dense<0.0> : !sum
    %open = arith.cmpf ogt, %gate_tile, %nothing : !sum
    %result = arith.select %open, %with_term, %nothing : !mask, !sum
"""
_PLAIN = """
    %result = arith.addf %sum, %term_tile : !sum
"""

# Taps of a side; where the tiles begin that the epilogue adds or compares; the epilogue.
_KINDS = {
    "layer": (3, {"term": "table"}, _RELU),
    "fusion": (1, {"term": "table", "gate": "here"}, _RESIDUAL),
    "gradient": (3, {"term": "here", "gate": "here"}, _MASKED),
    "input_gradient": (3, {"term": "here"}, _PLAIN),
}


@cache
def sums(kind: str, k: int, width: int, rows: int, dtype: torch.dtype) -> str:
    """Return the kernel y[chunk] = epilogue(sum over sources s of conv(planes[s], weights[chunk, s])) of a `kind`.

    layer: relu(sum + term); fusion: sum + term + gate; gradient: sum + term where gate > 0; input_gradient: sum + term.
    Planes have rows of `width` pixels. An item is a tile of `rows` rows of an image, for one chunk, which is a plane of
    the output; a program takes every n-th item. The last tile of an image begins where it still fits, and computes some
    rows again: none is partial. `term` is a tile per chunk for layer and fusion; it and `gate` are planes otherwise.

    Arguments: planes, weights, term, gate, y; sources, items, tiles of a plane, tiles of an image (blocks), height,
    elements of a plane, elements of a chunk's weights.
    """
    side, loads, epilogue = _KINDS[kind]
    halo, pixels = side // 2, rows * width
    in_pixels, w_rows = (rows + 2 * halo) * width, side**2 * k
    pointers = {name: ("!memory", name == "y") for name in ("planes", "weights", "term", "gate", "y")}
    names = {name: f"%arg{i}" for i, name in enumerate(pointers, 2)}
    sizes = names | {
        "float": FLOATS[dtype],
        "k": k,
        "kb": k // 16,
        "width": width,
        "rows": rows,
        "pixels": pixels,
        "head": HEAD,
        "side": side,
        "halo": halo,
        "in_rows": rows + 2 * halo,
        "in_pixels": in_pixels,
        "in_blocks": in_pixels // 16,
        "w_rows": w_rows,
        "w_blocks": w_rows // 16,
        "row_size": width * k,
        "halo_size": halo * width * k,
        "tile_size": pixels * k,
        "weights_size": w_rows * k,
    }
    tiles = [_fill(_LOAD_TILE, sizes, name=name, argument=names[name], at=at) for name, at in loads.items()]
    scalars = ("sources", "items", "tiles", "blocks", "height", "plane", "chunk_weights")
    body = _fill(_SUM, sizes, loads="".join(tiles), epilogue=epilogue)
    return _fill(_SUM_TYPES, sizes) + _function(kind, "mix", pointers, scalars, body)


_WEIGHT_TYPES = """
!memory = memref<?x$float>
!floats = memref<?xf32>
!tile = memref<${step}x${k}x$float>
!tile_view = memref<${step}x${k}x$float, strided<[$k, 1], offset: ?>>
!low = tensor<${step}x${k}x$float>
!turned = tensor<${k}x${step}x$float>
!sum = tensor<${k}x${k}xf32>
!sum_view = memref<${k}x${k}xf32, strided<[$k, 1], offset: ?>>
"""

_WEIGHT = """
    @split = item mod splits
    @ky = (item floordiv splits) mod 3
    @pair = (item floordiv (splits * 3)) mod pairs
    @chunk = item floordiv (splits * 3 * pairs)
    @low = (split * steps) floordiv splits
    @high = ((split + 1) * steps) floordiv splits
    %nothing = arith.constant dense<0.0> : !sum
    %turned = tensor.empty() : !turned
    %sums:6 = scf.for %step = %low to %high step %one
        iter_args($accumulators) -> (!sum, !sum, !sum, !sum, !sum, !sum) {
      @pixel = $head * $width + step * $step
      @opposite = pixel - (ky - 1) * $width
      @x0_at = 2 * pair * plane + pixel * $k
      @x1_at = 2 * pair * plane + plane + pixel * $k
      @d0_at = chunk * plane + (opposite + 1) * $k
      @d1_at = chunk * plane + opposite * $k
      @d2_at = chunk * plane + (opposite - 1) * $k
      $loads
      %x0_turned = linalg.transpose ins(%x0 : !low) outs(%turned : !turned) permutation = [1, 0]
      %x1_turned = linalg.transpose ins(%x1 : !low) outs(%turned : !turned) permutation = [1, 0]
      $products
      scf.yield %next00, %next01, %next02, %next10, %next11, %next12 : !sum, !sum, !sum, !sum, !sum, !sum
    }
    @parts_at = split * split_size + (((chunk * pairs + pair) * 2 * 3 + ky) * 3) * $sum_size
    $stores
"""

_LOAD_STEP = """
      %${name}_view = memref.reinterpret_cast %$argument to
          offset: [%${name}_at], sizes: [$step, $k], strides: [$k, 1] : !memory to !tile_view
      %${name}_buffer = memref.alloc() : !tile
      memref.copy %${name}_view, %${name}_buffer : !tile_view to !tile
      %$name = bufferization.to_tensor %${name}_buffer restrict writable : !tile
"""

_PRODUCT = """
      %next$s$kx = linalg.matmul {input_precison = "ieee"}
          ins(%x${s}_turned, %d$kx : !turned, !low) outs(%sum$s$kx : !sum) -> !sum
"""

_STORE = """
    @to$s$kx = parts_at + (9 * $s + $kx) * $sum_size
    %view$s$kx = memref.reinterpret_cast %arg4 to
        offset: [%to$s$kx], sizes: [$k, $k], strides: [$k, 1] : !floats to !sum_view
    bufferization.materialize_in_destination %sums#$number in writable %view$s$kx : (!sum, !sum_view) -> ()
"""


@cache
def weight_gradient(k: int, width: int, dtype: torch.dtype) -> str:
    """Return the kernel of the convolutions' weight gradients: parts[split, chunk, source, ky, kx, input, output].

    The tap (ky, kx) pairs a pixel of a source with the pixel of d that is (ky - 1, kx - 1) before it. An item is two
    sources, a row of taps (ky), and the share of the pixels of one split: five loads for six products.

    Arguments: planes, d, parts; items, splits, pairs of sources, steps of STEP pixels in a plane, elements of a plane,
    elements of a split's parts.
    """
    sizes = {"float": FLOATS[dtype], "k": k, "width": width, "step": STEP, "head": HEAD, "sum_size": k * k}
    taps = [{"s": s, "kx": kx, "number": 3 * s + kx} for s in range(2) for kx in range(3)]
    loads = {"x0": "arg2", "x1": "arg2", "d0": "arg3", "d1": "arg3", "d2": "arg3"}
    body = _fill(
        _WEIGHT,
        sizes,
        loads="".join(_fill(_LOAD_STEP, sizes, name=name, argument=argument) for name, argument in loads.items()),
        products="".join(_fill(_PRODUCT, sizes, **tap) for tap in taps),
        stores="".join(_fill(_STORE, sizes, **tap) for tap in taps),
        accumulators=", ".join(f"%sum{tap['s']}{tap['kx']} = %nothing" for tap in taps),
    )
    pointers = {"planes": ("!memory", False), "d": ("!memory", False), "parts": ("!floats", True)}
    scalars = ("items", "splits", "pairs", "steps", "plane", "split_size")
    return _fill(_WEIGHT_TYPES, sizes) + _function("weight_gradient", "aic", pointers, scalars, body)


KINDS = (*_KINDS, "weight_gradient")


def kernel(kind: str, k: int, width: int, rows: int, dtype: torch.dtype) -> str:
    """Return the kernel of a kind, of `KINDS`."""
    return weight_gradient(k, width, dtype) if kind == "weight_gradient" else sums(kind, k, width, rows, dtype)


def _fill(template: str, sizes: dict[str, object], **more: object) -> str:
    return Template(template).substitute(sizes, **more).strip("\n") + "\n"


def _function(kind: str, mode: str, pointers: dict[str, tuple[str, bool]], scalars: tuple[str, ...], body: str) -> str:
    """Return a module with one function. pointers: {name: (type, whether written)}; scalars are i32, here indices.

    triton-ascend reads the names %arg2, %arg3, ..., tensor_kind and mix_mode from the text.
    """
    declared = [
        f"%arg{i}: {kind_of_memory} {{tt.tensor_kind = {int(written)} : i32}}"
        for i, (kind_of_memory, written) in enumerate(pointers.values(), 2)
    ]
    declared += [f"%{name}_i32: i32" for name in scalars]
    indices = "\n  ".join(f"%{name} = arith.index_cast %{name}_i32 : i32 to index" for name in scalars)
    names = {"kind": kind, "mode": mode, "arguments": ", ".join(declared), "indices": indices}
    return re.sub(r"@(\w+) = (.*)", _apply, _fill(_FUNCTION, names, body=body.strip()))


def _apply(line: re.Match[str]) -> str:
    """Return `@name = formula` as an affine.apply, or an affine.min, of the values that the formula names."""
    name, formula = line.groups()
    values = list(dict.fromkeys(re.findall(r"[a-z]\w*", re.sub(r"\b(floordiv|mod|min)\b", "", formula))))
    operation, formula = ("min", formula[3:]) if formula.startswith("min(") else ("apply", f"({formula})")
    operands = ", ".join(f"%{value}" for value in values)
    return f"%{name} = affine.{operation} affine_map<()[{', '.join(values)}] -> {formula}>()[{operands}]"
