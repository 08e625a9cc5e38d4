"""The only tolerance policy, and the problem on which everything is checked before it is timed.

A result may be as wrong as plain PyTorch in the same dtype, and little more. An error is norm(result - oracle) /
norm(oracle), the oracle being computed in float64. It may be at most twice that of the plain concat formulation in the
result's own dtype, plus the dtype's slack.

Plain PyTorch errs differently in its memory formats, and a recipe in either of them is judged by the format that errs
more. In float32 the gradient of a bias is a sum over all pixels of the batch, whose rounding errors depend on the order
of the terms: oneDNN adds N random ones one by one, which errs by 0.22 * 2**-24 * sqrt(N) of the sum; in NCHW it shares
them among its threads and errs less (profiling/LOG.md).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

SLACK = {torch.float32: 1e-6, torch.float16: 2e-4, torch.bfloat16: 2e-3}
FLOAT64 = 1e-12  # largest error between two float64 computations of the same thing
APART = 10  # how many times the error of one memory format may be that of another one by rounding; 4 were seen

Results = dict[str, torch.Tensor]  # "output" and "gradient of NAME"
Solve = Callable[[dict[str, torch.Tensor], torch.Tensor, torch.Tensor], Results]  # (state, x, gradient of the output)


def relative_error(result: torch.Tensor, oracle: torch.Tensor) -> float:
    """Return norm(result - oracle) / norm(oracle) in float64; the absolute norm if oracle is zero. NaN stays NaN."""
    result, oracle = (tensor.detach().cpu().double() for tensor in (result, oracle))
    if result.shape != oracle.shape:
        raise AssertionError(f"shape {list(result.shape)}, expected {list(oracle.shape)}")
    scale = oracle.norm().item()
    return (result - oracle).norm().item() / (scale if scale else 1.0)


def assert_as_good_as_naive(
    result: torch.Tensor, oracle: torch.Tensor, naive_result: torch.Tensor, dtype: torch.dtype, what: str = "result"
) -> None:
    """Raise unless `result` is as near to the float64 `oracle` as the policy asks. NaN anywhere raises."""
    assert_error(relative_error(result, oracle), relative_error(naive_result, oracle), dtype, what)


def assert_error(error: float, naive_error: float, dtype: torch.dtype, what: str = "result") -> None:
    """Raise unless the error of a result is at most what the policy allows beside plain PyTorch's. NaN raises."""
    bound = 2 * naive_error + SLACK[dtype]
    if not error <= bound:
        allowed = f"allowed are {bound:.3g} (naive's own error is {naive_error:.3g})"
        raise AssertionError(f"{what}: relative error {error:.3g} in {dtype}, {allowed}")


def plain_error(errors: list[float], dtype: torch.dtype) -> float:
    """Return the error of plain PyTorch, given those of its memory formats: the largest, or NaN if one is NaN.

    One that is far above the smallest is no matter of rounding: it counts as APART times the smallest plus the slack.
    """
    errors = torch.tensor(errors, dtype=torch.float64)  # whose min() and max() keep NaN
    return torch.minimum(errors.max(), APART * errors.min() + SLACK[dtype]).item()


def assert_same_in_float64(result: torch.Tensor, oracle: torch.Tensor, what: str = "result") -> None:
    """Raise unless two float64 computations of the same thing agree up to rounding."""
    if result.dtype != torch.float64:
        raise AssertionError(f"{what}: is {result.dtype}, not float64")
    error = relative_error(result, oracle)
    if not error <= FLOAT64:
        raise AssertionError(f"{what}: relative error {error:.3g} in float64, allowed are {FLOAT64:.3g}")


def middle_of_widest_gap(values: torch.Tensor) -> torch.Tensor:
    """values [N, M] -> [N]: the middle of each row's widest gap that leaves a fifth of the values on either side."""
    values = values.sort(dim=1).values
    edge = values.shape[1] // 5
    values = values[:, edge : values.shape[1] - edge]
    widest = values.diff(dim=1).argmax(dim=1, keepdim=True)
    return (values.gather(1, widest) + values.gather(1, widest + 1))[:, 0] / 2


class Problem:
    """An input and a gradient of the output for a `module` of baseline.py, with the float64 oracle's results.

    The biases before ReLUs are chosen so that no ReLU's input is near zero. A value there may come out on either side
    of the kink by rounding alone, which changes the gradients by far more than rounding does. The loss is linear for
    the same reason. Few different images leave wider gaps there, and cost the oracle less, so a large batch consists of
    copies of them.
    """

    def __init__(
        self, module: nn.Module, x: torch.Tensor, dtype: torch.dtype, batch: int | None = None, training: bool = True
    ):
        """x: [N, channels, H, W]. `state`, `x` and `upstream` are rounded to `dtype`, for the oracle too.

        `batch` (None: N), a multiple of N: contenders get that many images, copies of x's in random order; the oracle
        computes N. Without `training` there are no gradients.
        """
        batch = batch or len(x)
        copies, rest = divmod(batch, len(x))
        if rest:
            raise ValueError(f"batch {batch} is no multiple of {len(x)} images")

        def rounded(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.detach().to(dtype).double()

        def set_bias(conv: nn.Conv2d, _, out: torch.Tensor) -> torch.Tensor:
            free = out - conv.bias[:, None, None]  # [B, G, H, W], the convolution without its bias
            conv.bias.copy_(rounded(-middle_of_widest_gap(free.transpose(0, 1).flatten(1))))
            return free + conv.bias[:, None, None]

        module = module.to("cpu", dtype).double()
        self.x = rounded(x.cpu())
        convs = [part for name, part in module.named_modules() if name.endswith(".conv")]
        hooks = [conv.register_forward_hook(set_bias) for conv in convs]
        with torch.no_grad():
            y = module(self.x)
        for hook in hooks:
            hook.remove()
        # Divided by the copies, the parameters' gradients stay as large as those of N images, in fp16 too.
        self.upstream = rounded(torch.randn(y.shape, dtype=torch.float64) / copies)
        oracle = solve_module(module, self.x, self.upstream) if training else {"output": y}
        order = torch.randperm(batch) % len(x)  # each image `copies` times
        # Gradients of the parameters are sums over the images.
        self.oracle = {
            name: value[order] if name in ("output", "gradient of x") else copies * value
            for name, value in oracle.items()
        }
        self.state = {name: value.to(dtype) for name, value in module.state_dict().items()}
        self.x, self.upstream = self.x[order].to(dtype), self.upstream[order].to(dtype)

    def errors(self, solve: Solve) -> dict[str, float]:
        """Return the relative error of each of solve's results."""
        results = solve(self.state, self.x, self.upstream)
        return {name: relative_error(result, self.oracle[name]) for name, result in results.items()}


class Parity:
    """Checks results by the policy.

    problem(dtype, which) is made once for each dtype and each of two problems, `which` being 0 and 1. It is solved by
    each of plain(dtype), plain PyTorch in its memory formats.
    """

    def __init__(self, problem: Callable[[torch.dtype, int], Problem], plain: Callable[[torch.dtype], list[Solve]]):
        self._problem, self._plain = problem, plain
        self._known: dict[tuple[torch.dtype, int], tuple[Problem, dict[str, float]]] = {}  # and errors of plain PyTorch

    def check(self, solve: Solve, dtype: torch.dtype, what: str) -> None:
        """Raise AssertionError, whose message begins with `what`, unless every result of solve is good enough.

        A result that misses the bound is judged on a second problem: right kernels whose error is close to the bound
        (winograd's) miss it on one problem in ten.
        """
        try:
            self._judge(solve, dtype, what, 0)
        except AssertionError:
            self._judge(solve, dtype, what, 1)

    def _judge(self, solve: Solve, dtype: torch.dtype, what: str, which: int) -> None:
        if (dtype, which) not in self._known:
            problem = self._problem(dtype, which)
            errors = [problem.errors(plain) for plain in self._plain(dtype)]
            worst = {name: plain_error([error[name] for error in errors], dtype) for name in problem.oracle}
            self._known[dtype, which] = problem, worst
        problem, plain = self._known[dtype, which]
        for name, error in problem.errors(solve).items():
            assert_error(error, plain[name], dtype, f"{what}, {name}")


def solve_module(
    module: nn.Module, x: torch.Tensor, upstream: torch.Tensor, forward: Callable | None = None
) -> Results:
    """Return the output of `forward` (default: the module) at x, and the gradients of (output * upstream).sum().

    Gradients are those at x and at every parameter of the module.
    """
    module.zero_grad()
    x = x.detach().clone().requires_grad_()
    y = (forward or module)(x)
    (y * upstream).sum().backward()
    gradients = {f"gradient of {name}": part.grad.detach().clone() for name, part in module.named_parameters()}
    module.zero_grad()
    return {"output": y.detach(), "gradient of x": x.grad, **gradients}


def distinct_images(batch: int) -> int:
    """Return of how many different images a Problem of this batch is made; they divide it."""
    return batch if batch < 4 else 2 - batch % 2
