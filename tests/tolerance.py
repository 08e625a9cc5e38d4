"""The only tolerance policy: a result may be as wrong as plain PyTorch in the same dtype, and little more.

An error is norm(result - oracle) / norm(oracle), the oracle being computed in float64. A result passes when its error is at
most twice that of `naive` (the plain concat formulation in the result's own dtype) plus the dtype's slack.
"""

import torch

SLACK = {torch.float32: 1e-6, torch.float16: 2e-4, torch.bfloat16: 2e-3}
FLOAT64 = 1e-12  # largest error between two float64 computations of the same thing


def relative_error(result: torch.Tensor, oracle: torch.Tensor) -> float:
    """norm(result - oracle) / norm(oracle) in float64; the absolute norm where the oracle is zero; NaN stays NaN."""
    result, oracle = (tensor.detach().cpu().double() for tensor in (result, oracle))
    if result.shape != oracle.shape:
        raise AssertionError(f"shape {list(result.shape)}, expected {list(oracle.shape)}")
    scale = oracle.norm().item()
    return (result - oracle).norm().item() / (scale if scale else 1.0)


def assert_as_good_as_naive(result: torch.Tensor, oracle: torch.Tensor, naive_result: torch.Tensor, dtype: torch.dtype, what: str = "result") -> None:
    """Fail unless `result` is as near to the float64 `oracle` as the policy asks; NaN anywhere fails. `what` opens the message."""
    error, naive_error = relative_error(result, oracle), relative_error(naive_result, oracle)
    bound = 2 * naive_error + SLACK[dtype]
    if not error <= bound:
        raise AssertionError(f"{what}: relative error {error:.3g} in {dtype}, allowed are {bound:.3g} (naive's own error is {naive_error:.3g})")


def assert_same_in_float64(result: torch.Tensor, oracle: torch.Tensor, what: str = "result") -> None:
    """Fail unless two float64 computations of the same thing agree but for rounding."""
    if result.dtype != torch.float64:
        raise AssertionError(f"{what}: is {result.dtype}, not float64")
    error = relative_error(result, oracle)
    if not error <= FLOAT64:
        raise AssertionError(f"{what}: relative error {error:.3g} in float64, allowed are {FLOAT64:.3g}")
