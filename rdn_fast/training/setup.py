"""Everything before a run's first tensor: ranks, device, inputs, lock, signals. Setup is what they come to."""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from rdn_fast import devices
from rdn_fast.config import ModelConfig, TrainConfig
from rdn_fast.distributed.process_group import Ranks
from rdn_fast.errors import Failure, LostContact, UserError
from rdn_fast.precision import Precision
from rdn_fast.training.inputs import Inputs, check_same, open_inputs, shared_flags
from rdn_fast.training.run_folder import locked, resumable_batch


@dataclass(frozen=True)
class Setup:
    """What stays fixed from the start of a run to its end."""

    model_config: ModelConfig
    train_config: TrainConfig
    inputs: Inputs
    device: torch.device
    precision: Precision | None  # None until resume.find_start() resolves it
    world: int  # ranks
    launches: list[str]  # ids of the launches that started the ranks, one of each node
    preset: str | None = None  # by whose name the configs were made
    validation_dtype: torch.dtype | None = None  # of validation where float32 is not asked for; None until resolved

    @property
    def outputs(self) -> Path:
        return Path(self.train_config.outputs_dir)

    @property
    def total_steps(self) -> int:
        c = self.train_config
        return min(c.max_steps or math.inf, c.num_epochs * self.inputs.sampler.steps)

    @property
    def uses_apex(self) -> bool:
        return self.precision.scaled and self.train_config.amp_backend == "apex"

    @property
    def flop(self) -> int:
        """Floating-point operations to train on one patch: forward, and twice that backward."""
        p = self.train_config.patch_size
        return 3 * 2 * self.model_config.macs(p, p)


@contextmanager
def open_run(
    model_config: ModelConfig, train_config: TrainConfig, preset: str | None = None
) -> Iterator[tuple[Setup, Ranks, list[int]]]:
    """Yield what a run needs, its ranks connected and its folder locked; the list collects SIGTERM and SIGINT.

    Raises UserError, Failure for an OSError within the block, and LostContact when another rank ends meanwhile.
    """
    ranks, outputs = Ranks(), Path(train_config.outputs_dir)
    try:
        device = devices.pick(train_config.device, train_config.device_id, ranks.local_rank)
        if devices.is_host(device):
            devices.keep_freed_memory()
        inputs = open_inputs(model_config, train_config, ranks.rank, ranks.world, device)
        ranks.connect(device)
        with locked(outputs, ranks), _signals(ranks) as signals:
            ranks.on_rank0(check_same, ranks.gather(shared_flags(model_config, train_config, inputs)))
            launches = ranks.launch_ids()
            global_batch = ranks.on_rank0(resumable_batch, outputs, launches)
            if global_batch is not None:  # the launcher has started the ranks anew
                train_config = _after_restart(train_config, global_batch, ranks.world)
                inputs = open_inputs(model_config, train_config, ranks.rank, ranks.world, device)
            setup = Setup(model_config, train_config, inputs, device, None, ranks.world, launches, preset)
            yield setup, ranks, signals
        ranks.close()
    except OSError as error:
        reason = f"{error.filename or outputs}: {error.strerror or error}"
        raise Failure(f"{reason}; mend it, then go on with --resume auto") from None
    except RuntimeError as error:
        if (reason := ranks.describe_lost_rank(error)) is None:
            raise
        raise LostContact(f"{reason}; go on with --resume auto") from None


def _after_restart(train_config: TrainConfig, global_batch: int, world: int) -> TrainConfig:
    """Return the configuration of a run whose launcher has started its ranks anew, perhaps more or fewer of them.

    The run goes on from its newest checkpoint with the same global batch. Raises UserError if it cannot be shared out.
    """
    shares, each = world * train_config.accumulate, ""
    if global_batch % shares:
        if train_config.accumulate > 1:
            each = f" in {train_config.accumulate} batches each"
        raise UserError(
            f"--nnodes: a batch of {global_batch} patches cannot be shared out evenly to {world} ranks{each}; "
            "start anew with other nodes"
        )
    return replace(train_config, resume="auto", batch_size=global_batch // shares)


@contextmanager
def _signals(ranks: Ranks) -> Iterator[list[int]]:
    """Yield a list that collects SIGTERM and SIGINT.

    A second Ctrl-C acts as usual, but not on a launched rank, which gets each one twice: from the terminal and from
    its launcher.
    """
    received: list[int] = []

    def handler(number, _):
        received.append(number)
        if number == signal.SIGINT and not ranks.launched:
            signal.signal(number, before[number])

    in_main = threading.current_thread() is threading.main_thread()  # signals reach no other
    before = {number: signal.signal(number, handler) for number in (signal.SIGTERM, signal.SIGINT) if in_main}
    try:
        yield received
    finally:
        for number, old in before.items():
            signal.signal(number, old)
