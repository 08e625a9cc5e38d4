"""torch_npu.optim: the vendor's fused Adam, with torch.optim.Adam's arithmetic."""

from __future__ import annotations

import torch
from torch.optim.adam import adam

_SLOTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")


class NpuFusedAdam(torch.optim.Optimizer):
    """Adam on buffers of all parameters, gradients and averages of a dtype.

    Parameters and gradients move into the buffers once there are gradients: in zero_grad, when a scaler unscales, or in
    step, whichever comes first. Averages move in the first step. The real one keeps computing on these buffers whatever
    happens to the tensors. This one raises when a parameter, a gradient or an average was reallocated.
    """

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0, amsgrad=False):
        if not (
            isinstance(lr, (int, float))
            and lr >= 0
            and eps >= 0
            and weight_decay >= 0
            and all(0 <= beta < 1 for beta in betas)
        ):
            raise ValueError(
                f"NpuFusedAdam: bad settings: lr {lr}, betas {betas}, eps {eps}, weight_decay {weight_decay}"
            )
        super().__init__(
            params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "amsgrad": amsgrad}
        )
        self._buffers: list[torch.Tensor] = []  # of gradients
        self._places: dict[torch.Tensor, list[int]] = {}  # of a parameter and its gradient, once they are combined
        self._averages: dict[torch.Tensor, list[int]] | None = None  # after the first step

    def zero_grad(self, set_to_none: bool = False) -> None:
        if set_to_none:
            raise ValueError("NpuFusedAdam: set_to_none is not supported, the gradients must stay where they are")
        for buffer in self.combined_gradients():
            buffer.zero_()

    def combined_gradients(self) -> list[torch.Tensor]:
        """The buffers; none as long as there are no gradients."""
        if not self._places:
            self._combine()
        return self._buffers

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.combined_gradients()
        if self._averages is None:
            self._combine_averages()
        for group in self.param_groups:
            self._check(group)
            self._step(group)
        return loss

    def load_state_dict(self, state_dict) -> None:
        if self._averages is not None:
            raise RuntimeError(
                "NpuFusedAdam: load_state_dict comes too late after the first step, which has moved the averages"
            )
        super().load_state_dict(state_dict)

    @torch.no_grad()
    def _combine(self) -> None:
        trained = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        for p in trained:
            _check_whole(p, "parameter")
            _check_whole(p.grad, "gradient")
        for dtype in {p.dtype for p in trained}:
            alike = [p for p in trained if p.dtype == dtype]
            _move_together(alike)
            self._buffers.append(_move_together([p.grad for p in alike]))
        self._places = {p: [p.data_ptr(), p.grad.data_ptr()] for p in trained}

    def _combine_averages(self) -> None:
        amsgrad = {p: group["amsgrad"] for group in self.param_groups for p in group["params"]}
        for p in self._places:
            state = self.state[p]
            state["step"] = int(state.get("step", 0))
            for slot in _SLOTS[: 2 + amsgrad[p]]:
                state[slot] = state[slot].clone() if slot in state else torch.zeros_like(p)
        for dtype in {p.dtype for p in self._places}:
            for slot in _SLOTS:
                _move_together(
                    [self.state[p][slot] for p in self._places if p.dtype == dtype and slot in self.state[p]]
                )
        self._averages = {p: self._averages_of(p) for p in self._places}

    def _averages_of(self, p: torch.Tensor) -> list[int]:
        return [self.state[p][slot].data_ptr() for slot in _SLOTS if slot in self.state[p]]

    def _check(self, group: dict) -> None:
        for p in group["params"]:
            if p in self._places and (
                p.grad is None
                or [p.data_ptr(), p.grad.data_ptr()] != self._places[p]
                or self._averages_of(p) != self._averages[p]
            ):
                raise RuntimeError(
                    f"NpuFusedAdam: a parameter {tuple(p.shape)}, its gradient or its averages "
                    "were reallocated after they were combined"
                )
            if p not in self._places and p.grad is not None:
                raise RuntimeError(
                    f"NpuFusedAdam: a parameter {tuple(p.shape)} had no gradient when they were combined, "
                    "and is never trained"
                )

    def _step(self, group: dict) -> None:
        params = [p for p in group["params"] if p in self._places]
        states = [self.state[p] for p in params]
        adam(
            params,
            [p.grad for p in params],
            *([state[slot] for state in states if slot in state] for slot in _SLOTS),
            [torch.tensor(float(state["step"])) for state in states],
            foreach=False,
            fused=False,
            amsgrad=group["amsgrad"],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
        for state in states:
            state["step"] += 1


def _check_whole(tensor: torch.Tensor, what: str) -> None:
    if tensor.device.type != "npu" or tensor.dtype not in (torch.float32, torch.float16):
        raise TypeError(
            f"NpuFusedAdam: a {what} is {tensor.dtype} on {tensor.device}; it must be float32 or float16 on an npu"
        )
    if tensor.untyped_storage().nbytes() != tensor.numel() * tensor.element_size():
        raise RuntimeError(
            f"NpuFusedAdam: a {what} {tuple(tensor.shape)} is a part of a larger buffer, "
            "which would be moved as a whole for each of its parts "
            "(DistributedDataParallel makes such gradients when gradient_as_bucket_view is set)"
        )


def _move_together(tensors: list[torch.Tensor]) -> torch.Tensor | None:
    """Make the tensors parts of one new buffer that holds their values."""
    if not tensors:
        return None
    buffer = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
    for tensor, part in zip(tensors, buffer.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.data = part.view(tensor.shape)
    return buffer
