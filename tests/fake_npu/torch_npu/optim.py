"""torch_npu.optim: the vendor's fused Adam, with torch.optim.Adam's arithmetic."""

from __future__ import annotations

import torch
from torch.optim.adam import adam

_SLOTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")


class NpuFusedAdam(torch.optim.Optimizer):
    """Adam on buffers into which the first step moves all parameters, gradients and averages of a dtype.

    The real one goes on computing on these buffers whatever happens to the tensors; this one raises when a parameter, a gradient or an
    average is no longer where the first step put it.
    """

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0, amsgrad=False):
        if not (isinstance(lr, (int, float)) and lr >= 0 and eps >= 0 and weight_decay >= 0 and all(0 <= beta < 1 for beta in betas)):
            raise ValueError(f"NpuFusedAdam: bad settings: lr {lr}, betas {betas}, eps {eps}, weight_decay {weight_decay}")
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "amsgrad": amsgrad})
        self._places: dict[torch.Tensor, list[int]] | None = None  # of a parameter, its gradient and averages, after the first step

    def zero_grad(self, set_to_none: bool = False) -> None:
        if set_to_none:
            raise ValueError("NpuFusedAdam: set_to_none is not supported, the gradients must stay where they are")
        super().zero_grad(set_to_none=False)

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self._places is None:
            self._places = self._combine()
        for group in self.param_groups:
            self._check(group)
            self._step(group)
        return loss

    def load_state_dict(self, state_dict) -> None:
        if self._places is not None:
            raise RuntimeError("NpuFusedAdam: load_state_dict comes too late after the first step, which has moved the averages")
        super().load_state_dict(state_dict)

    def _combine(self) -> dict[torch.Tensor, list[int]]:
        trained = [(p, group) for group in self.param_groups for p in group["params"] if p.grad is not None]
        for p, group in trained:
            _check_whole(p, "parameter")
            _check_whole(p.grad, "gradient")
            state = self.state[p]
            state["step"] = int(state.get("step", 0))
            for slot in _SLOTS[: 2 + group["amsgrad"]]:
                state[slot] = state[slot].clone() if slot in state else torch.zeros_like(p)
        for dtype in {p.dtype for p, _ in trained}:
            alike = [p for p, _ in trained if p.dtype == dtype]
            _move_together(alike)
            _move_together([p.grad for p in alike])
            for slot in _SLOTS:
                _move_together([self.state[p][slot] for p in alike if slot in self.state[p]])
        return {p: self._places_of(p) for p, _ in trained}

    def _places_of(self, p: torch.Tensor) -> list[int]:
        return [tensor.data_ptr() for tensor in (p, p.grad, *(self.state[p][slot] for slot in _SLOTS if slot in self.state[p]))]

    def _check(self, group: dict) -> None:
        for p in group["params"]:
            if p in self._places and (p.grad is None or self._places_of(p) != self._places[p]):
                raise RuntimeError(f"NpuFusedAdam: a parameter {tuple(p.shape)}, its gradient or its averages were reallocated after the first step")
            if p not in self._places and p.grad is not None:
                raise RuntimeError(f"NpuFusedAdam: a parameter {tuple(p.shape)} had no gradient in the first step, and is never trained")

    def _step(self, group: dict) -> None:
        params = [p for p in group["params"] if p in self._places]
        states = [self.state[p] for p in params]
        adam(
            params, [p.grad for p in params], *([state[slot] for state in states if slot in state] for slot in _SLOTS),
            [torch.tensor(float(state["step"])) for state in states], foreach=False, fused=False, amsgrad=group["amsgrad"],
            beta1=group["betas"][0], beta2=group["betas"][1], lr=group["lr"], weight_decay=group["weight_decay"], eps=group["eps"], maximize=False,
        )  # fmt: skip
        for state in states:
            state["step"] += 1


def _check_whole(tensor: torch.Tensor, what: str) -> None:
    if tensor.device.type != "npu" or tensor.dtype not in (torch.float32, torch.float16):
        raise TypeError(f"NpuFusedAdam: a {what} is {tensor.dtype} on {tensor.device}; it must be float32 or float16 on an npu")
    if tensor.untyped_storage().nbytes() != tensor.numel() * tensor.element_size():
        raise RuntimeError(
            f"NpuFusedAdam: a {what} {tuple(tensor.shape)} is a part of a larger buffer, which would be moved as a whole for each of its parts "
            "(DistributedDataParallel makes such gradients when gradient_as_bucket_view is set)"
        )


def _move_together(tensors: list[torch.Tensor]) -> None:
    """Make the tensors parts of one new buffer that holds their values."""
    if tensors:
        buffer = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
        for tensor, part in zip(tensors, buffer.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.data = part.view(tensor.shape)
