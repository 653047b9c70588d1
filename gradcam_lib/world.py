"""Many workers as one: what `torchrun` starts on the devices of one machine or of several trains one network together.

Every worker has the same weights. Of each batch it takes its part, and the gradients of all are added before each step.
"""

import atexit
import os
import threading
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

__all__ = ["GlobalBatchNorm2d", "World", "fastest_device", "joined", "usable"]


@dataclass(frozen=True)
class World:
    """All workers, as one of them sees them.

    device  that this worker computes on
    rank    its number, from 0 on; worker 0 writes the files and shows the progress
    size    how many there are
    """

    device: torch.device
    rank: int = 0
    size: int = 1

    def part(self, n: int) -> slice:
        """Which of n things, in order, are this worker's: the parts of all workers differ by one at most."""
        return slice(n * self.rank // self.size, n * (self.rank + 1) // self.size)

    def sum(self, values: list[float]) -> list[float]:
        """Element by element, over all workers."""
        if self.size == 1:
            return values
        total = torch.tensor(values, dtype=torch.float64)
        distributed.all_reduce(total)
        return total.tolist()

    def gathered(self, rows: torch.Tensor) -> torch.Tensor:
        """The rows (n, ...) of all workers, one after the other, on the CPU."""
        if self.size == 1:
            return rows
        parts: list[Any] = [None] * self.size
        distributed.all_gather_object(parts, rows.cpu())
        return torch.cat(parts)

    def together(self, model: nn.Module) -> nn.Module:
        """The network as all workers train it: their gradients are averaged, and batch norms see the whole batch."""
        if self.size == 1:
            return model
        for module in model.modules():
            if type(module) is nn.BatchNorm2d:
                module.__class__ = GlobalBatchNorm2d  # the same parameters, buffers and names
        return DistributedDataParallel(model)


class _Sum(torch.autograd.Function):
    """The sum over all workers, to each of them; and so is its gradient, since the loss is the sum of theirs."""

    @staticmethod
    def forward(context: Any, x: torch.Tensor) -> torch.Tensor:
        total = x.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> torch.Tensor:
        return _Sum.forward(context, gradient.contiguous())


def _sum(x: torch.Tensor) -> torch.Tensor:
    return _Sum.apply(x)  # type: ignore[no-untyped-call]  # PyTorch's, without types


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation over the batch of all workers, of which (N, C, H, W) is this one's part; N may be 0.

    PyTorch's own, `nn.SyncBatchNorm`, is for GPUs alone.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return super().forward(x)
        # None in batch norms without statistics, or with their plain mean: no network of ours has one.
        assert self.running_mean is not None and self.running_var is not None
        assert self.momentum is not None and self.num_batches_tracked is not None
        u = x.float()
        summed = _sum(torch.cat([u.sum((0, 2, 3)), u.new_tensor([u.numel() / len(self.running_mean)])]))
        count, mean = summed[-1].detach(), summed[:-1] / summed[-1].detach()
        centred = u - mean[:, None, None]
        variance = _sum(centred.square().sum((0, 2, 3))) / count
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
            self.num_batches_tracked.add_(1)
        y = centred * (variance + self.eps).rsqrt()[:, None, None]
        return (y * self.weight[:, None, None] + self.bias[:, None, None]).to(x.dtype)


def fastest_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def usable(device: str | torch.device) -> torch.device:
    """The device of that name. Raises ValueError where this machine has none."""
    there = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    kind, _, index = str(device).partition(":")
    if not (index or "0").isdecimal() or int(index or 0) >= there.get(kind, 0):
        raise ValueError(f"There is no device {str(device)!r} here. The fastest one is {fastest_device()!r}.")
    return torch.device(device)


def joined(device: torch.device) -> World:
    """The workers that `torchrun` started, of whom this process is one; or this process alone.

    device  of which kind a worker is to take its own: "cuda" becomes the GPU of its number on its machine
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:  # torchrun sets it, and nothing else does
        return World(device)
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    rank, size, attempt = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "TORCHELASTIC_RESTART_COUNT"))
    if not distributed.is_initialized():  # once a process: workers that part cannot meet again
        board = distributed.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), wait_for_workers=False)
        distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
            # Workers leave their addresses for each other there; those of an attempt that was killed still hang on it.
            store=distributed.PrefixStore(f"attempt {attempt}", board),
            rank=rank,
            world_size=size,
        )
        atexit.register(distributed.destroy_process_group)
        _end_with(os.getppid())
    return World(device, rank, size)


def _end_with(parent: int) -> None:
    """End this process when its parent has ended. The workers of a torchrun that is killed would train on to the end,
    and write where those of the next one write."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
