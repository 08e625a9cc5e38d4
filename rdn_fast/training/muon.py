"""Muon: convolutions between the first and the last step along their orthogonalized momentum, all else by Adam.

Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024); the size of a step, which lets Adam's
learning rates serve, is that of Liu et al., "Muon is scalable for LLM training" (2025, arXiv:2502.16982).
"""

from __future__ import annotations

from collections import defaultdict

import torch
from torch.optim.adam import adam

from rdn_fast import devices
from rdn_fast.model import RDN

MOMENTUM = 0.95
_RMS = 0.2  # of a step of learning rate 1, about Adam's
_QUINTIC = 3.4445, -4.7750, 2.0315  # one pass brings every singular value in 0..1 nearer to 1
_PASSES = 5
_BETAS, _EPS = (0.9, 0.999), 1e-8  # of torch.optim.Adam


class Muon(torch.optim.Optimizer):
    """Muon for the weights of all convolutions but sfe1 and output, Adam for those two and for the biases.

    A convolution's weight is the matrix [out, in * k * k]. Its gradient g goes into the momentum m = 0.95 m + 0.05 g,
    and the step is along U V^T of 0.95 m + 0.05 g = U S V^T, at lr * 0.2 * sqrt(max(rows, columns)).

    Where Adam is fused, step() takes `grad_scale` and `found_inf` as torch's fused ones do, and never synchronizes.
    """

    def __init__(self, model: RDN, device: torch.device, lr: float, weight_decay: float):
        """weight_decay: an L2 penalty added to the gradient."""
        matrices, others = [], []
        for name, p in model.named_parameters():
            outer = name.startswith(("sfe1.", "output."))
            (matrices if p.dim() == 4 and not outer else others).append(p)
        super().__init__([{"params": matrices}, {"params": others}], {"lr": lr, "weight_decay": weight_decay})
        devices.set_learning_rate(self, lr, device)
        # Torch's fused Adam is an operation over lists of tensors, too.
        self._step_supports_amp_scaling = self._fused = devices.supports_foreach(device)
        self.grad_scale = self.found_inf = None
        for p in matrices:
            self.state[p]["momentum"] = torch.zeros_like(p)
        for p in others:
            self.state[p] = {"step": torch.zeros((), device=device)}
            self.state[p] |= {slot: torch.zeros_like(p) for slot in ("exp_avg", "exp_avg_sq")}

    @torch.no_grad()
    def step(self) -> None:
        matrices, others = self.param_groups
        self._step_muon(**matrices)
        self._step_adam(**others)

    def load_state_dict(self, state_dict: dict) -> None:
        super().load_state_dict(state_dict)
        for p in self.param_groups[1]["params"]:
            self.state[p]["step"] = torch.full((), float(self.state[p]["step"]), device=p.device)

    def _step_muon(self, params: list[torch.nn.Parameter], lr: float | torch.Tensor, weight_decay: float) -> None:
        taken = 1.0 if self.found_inf is None else 1 - self.found_inf
        share, rate = (1 - MOMENTUM) * taken, _RMS * lr * taken
        finite = None if self.found_inf is None else self.found_inf == 0
        directions = defaultdict(list)  # {rows: [(weight, direction [rows, columns])]}
        for p in params:
            gradient = p.grad if self.grad_scale is None else p.grad / self.grad_scale
            if finite is not None:
                gradient = gradient.where(finite, 0.0)
            if weight_decay:
                gradient = gradient.add(p, alpha=weight_decay)
            momentum = self.state[p]["momentum"].lerp_(gradient, share)
            direction = _matrix(gradient.lerp(momentum, MOMENTUM))
            directions[min(direction.shape)].append((_matrix(p), direction))
        for pairs in directions.values():
            weights, steps = zip(*pairs, strict=True)
            for weight, step in zip(weights, orthogonalized(steps), strict=True):
                weight.sub_(step * (rate * max(weight.shape) ** 0.5))

    def _step_adam(self, params: list[torch.nn.Parameter], lr: float | torch.Tensor, weight_decay: float) -> None:
        states = [self.state[p] for p in params]
        averages, squares, steps = ([state[slot] for state in states] for slot in ("exp_avg", "exp_avg_sq", "step"))
        adam(
            params,
            [p.grad for p in params],
            averages,
            squares,
            [],
            steps,
            foreach=False,
            fused=self._fused,
            grad_scale=self.grad_scale,
            found_inf=self.found_inf,
            amsgrad=False,
            beta1=_BETAS[0],
            beta2=_BETAS[1],
            lr=lr,
            weight_decay=weight_decay,
            eps=_EPS,
            maximize=False,
        )


def _matrix(weight: torch.Tensor) -> torch.Tensor:
    """Return the view [out, k * k * in] of a channels-last weight, of others [out, in * k * k]; of either's copy."""
    last = weight.is_contiguous(memory_format=torch.channels_last)
    return (weight.permute(0, 2, 3, 1) if last else weight).flatten(1)


def orthogonalized(matrices: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return about U V^T of each matrix U S V^T, by _PASSES of the quintic. All have as many rows, or columns if fewer.

    A pass multiplies X by a polynomial of X X^T, so all passes are computed on the small matrices X X^T and are applied
    to X at the end: two products of X's size instead of ten. Where singular values are below 1e-3 of the largest,
    float32 leaves an error of about a thousandth; TF32 may diverge.
    """
    tall = [len(x) > x.shape[1] for x in matrices]
    wide = [x.T if turned else x for x, turned in zip(matrices, tall, strict=True)]  # [r, columns]
    gram = torch.stack([x @ x.T for x in wide])  # [n, r, r]
    square = gram.diagonal(dim1=1, dim2=2).sum(1).clamp_min(torch.finfo(gram.dtype).tiny)[:, None, None]
    gram = gram / square
    a, b, c = _QUINTIC
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    product = identity / square.sqrt()
    for _ in range(_PASSES):
        factor = a * identity + b * gram + c * (gram @ gram)
        product = factor @ product
        gram = factor @ gram @ factor
    results = [factor @ x for factor, x in zip(product, wide, strict=True)]
    return [x.T if turned else x for x, turned in zip(results, tall, strict=True)]
