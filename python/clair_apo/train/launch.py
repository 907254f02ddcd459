"""Processes and devices: what Accelerate launched, and how the model is spread over it.

Accelerate places and launches; the wrapping is done here, by PyTorch itself, so that two processes on CPUs
run the code that GPUs run. What a launch setting asks for and is not in force is an error, since
Accelerate drops some settings without a word (a plugin for FSDP on CPUs, for one).
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import nn

from clair_apo import launched
from clair_apo.errors import ClairError, UsageError

if TYPE_CHECKING:
    from clair_apo.train.options import TrainOptions
    from clair_apo.train.policy import Policy

T = TypeVar("T")


class Processes:
    """The processes of this run; `rank` 0 is the one that speaks and writes."""

    def __init__(self, accelerator: Any) -> None:
        self.accelerator = accelerator
        self.device: torch.device = accelerator.device
        self.rank: int = accelerator.process_index
        self.count: int = accelerator.num_processes
        self._waits = 0
        # What was asked for last, and a stream of its own, where nobody waits for what a GPU computes.
        self._asked: tuple[torch.Tensor, Any] | None = None
        cuda = self.device.type == "cuda"
        self._aside = torch.cuda.Stream(self.device) if cuda else None  # type: ignore[no-untyped-call]

    @property
    def first(self) -> bool:
        return self.rank == 0

    def wait(self) -> None:
        if self.count > 1:
            self.accelerator.wait_for_everyone()

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over all processes."""
        if self.count > 1:
            dist.all_reduce(values)
        return values

    def least(self, value: int) -> int:
        """The smallest over all processes."""
        if self.count == 1:
            return value
        found = torch.tensor(value, dtype=torch.int64, device=self.device)
        dist.all_reduce(found, dist.ReduceOp.MIN)
        return int(found.item())

    def any(self, flag: bool) -> bool:
        """Whether it is so in any process."""
        if self.count == 1:
            return flag
        return bool(self.sum(torch.tensor(float(flag), device=self.device)).item())

    def soon(self, flag: bool) -> bool:
        """Whether it was so in any process when all asked this the last time; of one process, at once.

        All ask at the same places, and all are answered alike. Each time one number goes out, and the one
        before is looked at, for which nobody has to wait by then: so it may be asked at every microbatch.
        """
        if self.count == 1:
            return flag
        with torch.cuda.stream(self._aside):
            before = self._asked
            value = torch.tensor(int(flag), dtype=torch.int32, device=self.device)
            self._asked = value, dist.all_reduce(value, dist.ReduceOp.MAX, async_op=True)
            if before is None:
                return False
            value, work = before
            work.wait()
            return bool(value.item())

    def from_first(
        self,
        make: Callable[[], T],
        send: Callable[[T], Any] = lambda made: made,
        receive: Callable[[Any], T] = lambda sent: sent,
    ) -> T:
        """What `make` gives in the first process, in the others too: what `receive` makes of what `send`
        makes of it, which is pickled. The first may take its time. A ClairError there is one everywhere."""
        if self.count == 1:
            return make()
        made, sent, failure = None, None, None
        if self.first:
            try:
                made = make()
                sent = send(made)
            except ClairError as error:
                failure = error
        self._wait_for_first()
        box = [sent, failure]
        dist.broadcast_object_list(box, src=0)
        sent, failure = box
        if failure is not None:
            raise failure
        return cast(T, made) if self.first else receive(sent)

    def _wait_for_first(self) -> None:
        """Not within a collective operation, which gives up after minutes: reading and hashing a large
        model takes longer."""
        self._waits += 1
        name = f"first/{self._waits}"
        store = launched.store(300)
        if self.first:
            store.set(name, "")
        while not store.check([name]):
            time.sleep(0.05)


def start(options: TrainOptions) -> Processes:
    """Joins the other processes of the launch.

    Raises: UsageError where the launch asks for what this trainer does not do, or does otherwise.
    """
    asked = os.environ.get
    if _on(asked("ACCELERATE_USE_DEEPSPEED")):
        raise UsageError("DeepSpeed is not supported: --sharding fsdp spreads weights over processes")
    if _on(asked("ACCELERATE_USE_MEGATRON_LM")):
        raise UsageError("Megatron-LM is not supported: --sharding fsdp spreads weights instead")
    precision = asked("ACCELERATE_MIXED_PRECISION", "no")
    # Accelerate would wrap nothing of ours in it, so it is left out of its sight.
    os.environ["ACCELERATE_MIXED_PRECISION"] = "no"
    from accelerate import Accelerator

    accelerator = Accelerator(log_with=list(options.report_to) or None, project_dir=options.output_dir)
    processes = Processes(accelerator)
    cuda = processes.device.type == "cuda"
    in_force = "bf16" if cuda and options.dtype == "auto" else "no"
    if precision not in ("no", in_force) and not (precision == "bf16" and options.dtype == "bfloat16"):
        raise UsageError(
            f"the launch asks for mixed precision {precision}, but --dtype {options.dtype} means "
            f"{in_force} here; launch with --mixed_precision no, and set --dtype"
        )
    if processes.count == 1 and options.sharding != "auto":
        raise UsageError(
            f"--sharding {options.sharding} needs several processes, and this is one: "
            "accelerate launch --num_processes N -m clair_apo.train …"
        )
    if _on(asked("ACCELERATE_USE_FSDP")) and options.sharding == "ddp":
        raise UsageError("the launch asks for FSDP, and --sharding for ddp; leave one of them out")
    return processes


def leave() -> None:
    """Parts from the other processes once all are done: what is still connected when the interpreter ends
    may abort it."""
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def sharded(options: TrainOptions, processes: Processes) -> bool:
    """Whether weights are spread over the processes: as --sharding or else the launch says."""
    return processes.count > 1 and wants_shards(options)


def wants_shards(options: TrainOptions) -> bool:
    """What --sharding, or else the launch, says for several processes."""
    if options.sharding == "auto":
        return _on(os.environ.get("ACCELERATE_USE_FSDP"))
    return options.sharding == "fsdp"


def wrap(policy: Policy, options: TrainOptions, processes: Processes) -> nn.Module:
    """The policy as this run's processes hold it: alone, as DDP's replica, or sharded as it is already
    (`shards.spread`)."""
    if processes.count == 1 or sharded(options, processes):
        return policy
    if not any(parameter.requires_grad for parameter in policy.parameters()):
        return policy  # a reference: DDP refuses what has no gradients to exchange
    ids = [processes.device.index] if processes.device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(policy, device_ids=ids, gradient_as_bucket_view=True)


class Trackers:
    """What --report-to names, through Accelerate. Opened by the first process only."""

    def __init__(self, options: TrainOptions, processes: Processes) -> None:
        self._accelerator = processes.accelerator if options.report_to else None
        self._options = options

    def __enter__(self) -> Trackers:
        if self._accelerator is not None:
            # Trackers take numbers and text only.
            plain = {
                k: v if isinstance(v, int | float | str) else str(v)
                for k, v in self._options.as_dict().items()
            }
            self._accelerator.init_trackers("clair-apo", config=plain)
        return self

    def log(self, record: dict[str, Any]) -> None:
        """One object of metrics.jsonl."""
        if self._accelerator is not None:
            values = {name: value for name, value in record.items() if name != "step"}
            self._accelerator.log(values, step=record["step"])

    def __exit__(self, *_: object) -> None:
        if self._accelerator is not None:
            self._accelerator.end_training()


@contextlib.contextmanager
def accumulating(module: nn.Module, last: bool) -> Iterator[None]:
    """Around a forward and backward pass: replicas exchange gradients behind the last one only. Shards
    exchange them behind each, since whole gradients would need the memory that sharding saves."""
    if isinstance(module, nn.parallel.DistributedDataParallel) and not last:
        with module.no_sync():
            yield
    else:
        yield


def _on(value: str | None) -> bool:
    return (value or "").lower() in ("1", "true", "yes", "on")
