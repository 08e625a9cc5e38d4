"""The only tolerance policy, and the problem on which everything is checked before it is timed.

A result may be as wrong as plain PyTorch in the same dtype, and little more: an error is norm(result - oracle) / norm(oracle), the
oracle being computed in float64, and may be at most twice that of the plain concat formulation in the result's own dtype plus the dtype's slack.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

SLACK = {torch.float32: 1e-6, torch.float16: 2e-4, torch.bfloat16: 2e-3}
FLOAT64 = 1e-12  # largest error between two float64 computations of the same thing

Results = dict[str, torch.Tensor]  # "output" and "gradient of NAME"
Solve = Callable[[dict[str, torch.Tensor], torch.Tensor, torch.Tensor], Results]  # (state, x, gradient of the output)


def relative_error(result: torch.Tensor, oracle: torch.Tensor) -> float:
    """norm(result - oracle) / norm(oracle) in float64; the absolute norm where the oracle is zero; NaN stays NaN."""
    result, oracle = (tensor.detach().cpu().double() for tensor in (result, oracle))
    if result.shape != oracle.shape:
        raise AssertionError(f"shape {list(result.shape)}, expected {list(oracle.shape)}")
    scale = oracle.norm().item()
    return (result - oracle).norm().item() / (scale if scale else 1.0)


def assert_as_good_as_naive(
    result: torch.Tensor, oracle: torch.Tensor, naive_result: torch.Tensor, dtype: torch.dtype, what: str = "result"
) -> None:
    """Fail unless `result` is as near to the float64 `oracle` as the policy asks; NaN anywhere fails. `what` opens the message."""
    error, naive_error = relative_error(result, oracle), relative_error(naive_result, oracle)
    bound = 2 * naive_error + SLACK[dtype]
    if not error <= bound:
        raise AssertionError(
            f"{what}: relative error {error:.3g} in {dtype}, allowed are {bound:.3g} (naive's own error is {naive_error:.3g})"
        )


def assert_same_in_float64(result: torch.Tensor, oracle: torch.Tensor, what: str = "result") -> None:
    """Fail unless two float64 computations of the same thing agree but for rounding."""
    if result.dtype != torch.float64:
        raise AssertionError(f"{what}: is {result.dtype}, not float64")
    error = relative_error(result, oracle)
    if not error <= FLOAT64:
        raise AssertionError(f"{what}: relative error {error:.3g} in float64, allowed are {FLOAT64:.3g}")


def middle_of_widest_gap(values: torch.Tensor) -> torch.Tensor:
    """values [N, M] -> [N]: of each row, the middle of the widest gap between neighbours that leaves a fifth of the values on either side."""
    values = values.sort(dim=1).values
    edge = values.shape[1] // 5
    values = values[:, edge : values.shape[1] - edge]
    widest = values.diff(dim=1).argmax(dim=1, keepdim=True)
    return (values.gather(1, widest) + values.gather(1, widest + 1))[:, 0] / 2


class Problem:
    """One input and one gradient of the output for a `module` of baseline.py, with the float64 oracle's output and gradients.

    The biases before ReLUs are chosen so that no ReLU's input is near zero: a value there may come out on either side of the
    kink by rounding alone, which changes the gradients by far more than rounding does. The loss is linear for the same reason.
    Few different images leave wider gaps there, and cost the oracle less, so a large batch consists of copies of them.
    """

    def __init__(
        self, module: nn.Module, x: torch.Tensor, dtype: torch.dtype, batch: int | None = None, training: bool = True
    ):
        """x: [N, channels, H, W]. What the contenders are given, `state`, `x` and `upstream`, is rounded to `dtype`; so is what the oracle sees.

        `batch` (None: N): how many images the contenders are given, copies of x's in random order, a multiple of N; the oracle computes
        the N and knows the rest. Without `training` there are no gradients.
        """
        batch = batch or len(x)
        copies, rest = divmod(batch, len(x))
        if rest:
            raise ValueError(f"batch {batch} is no multiple of {len(x)} images")

        def rounded(tensor):
            return tensor.detach().to(dtype).double()

        module = module.to("cpu", dtype).double()
        self.x = rounded(x.cpu())

        def choose(conv: nn.Conv2d, _, out: torch.Tensor) -> torch.Tensor:
            free = out - conv.bias[:, None, None]  # [B, G, H, W], the convolution without its bias
            conv.bias.copy_(rounded(-middle_of_widest_gap(free.transpose(0, 1).flatten(1))))
            return free + conv.bias[:, None, None]

        hooks = [part.register_forward_hook(choose) for name, part in module.named_modules() if name.endswith(".conv")]
        with torch.no_grad():
            y = module(self.x)
        for hook in hooks:
            hook.remove()
        self.upstream = rounded(
            torch.randn(y.shape, dtype=torch.float64) / copies
        )  # the parameters' gradients stay as large, in fp16 too
        self.oracle = solve_module(module, self.x, self.upstream) if training else {"output": y}
        order = torch.randperm(batch) % len(x)  # each image `copies` times
        self.oracle = {
            name: value[order]
            if name in ("output", "gradient of x")
            else copies * value  # the parameters' gradients are sums over the images
            for name, value in self.oracle.items()
        }
        self.state = {name: value.to(dtype) for name, value in module.state_dict().items()}
        self.x, self.upstream = self.x[order].to(dtype), self.upstream[order].to(dtype)

    def solved(self, solve: Solve) -> Results:
        return solve(self.state, self.x, self.upstream)

    def check(self, results: Results, yardstick: Results, dtype: torch.dtype, what: str) -> None:
        """AssertionError unless every result is as good as the policy asks; `yardstick` is the plain formulation's in the same dtype."""
        for name, result in results.items():
            assert_as_good_as_naive(result, self.oracle[name], yardstick[name], dtype, f"{what}, {name}")


def solve_module(
    module: nn.Module, x: torch.Tensor, upstream: torch.Tensor, forward: Callable | None = None
) -> Results:
    """Output of `forward` (default: the module itself) at x, and the gradients of (output * upstream).sum() at x and every parameter."""
    module.zero_grad()
    x = x.detach().clone().requires_grad_()
    y = (forward or module)(x)
    (y * upstream).sum().backward()
    gradients = {
        f"gradient of {name}": parameter.grad.detach().clone() for name, parameter in module.named_parameters()
    }
    module.zero_grad()
    return {"output": y.detach(), "gradient of x": x.grad, **gradients}
