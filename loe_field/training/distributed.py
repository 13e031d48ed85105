"""One run in several processes: what they give each other, and what becomes of a run that loses one of them.

Every process holds the whole network and takes its part of each step's batch. Process 0 decides how far a turn of the
loop goes, evaluates, shows and writes; the others follow. There are three groups of processes: one for the numbers of a
step (NCCL on GPUs, gloo on CPUs), one for what process 0 decides, and one for a thread that watches over the others.
"""

import functools
import hashlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from itertools import groupby, pairwise
from typing import Any, NoReturn

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from loe_field.errors import InputError
from loe_field.training.machine import usable_cores
from loe_field.words import say

_START = timedelta(minutes=10)
"""How long the first processes wait for the last to start."""
_WORK = timedelta(days=1)
"""How long processes wait for numbers, and for process 0 while it evaluates or writes: the watch ends a lost run."""
_SILENCE = timedelta(minutes=5)
"""How long a process may be silent before it counts as lost. One that ends is noticed at once."""
_BEAT = 0.5
"""Seconds between two signs of life."""
_PATIENCE = 30.0
"""Seconds in which the watch finds out which process was lost, once something has failed."""
LAST_WORD = 2.0
"""Seconds for the process that tells why the run ends: torchrun ends all as soon as one has ended."""
_PARENT = "TORCHELASTIC_RUN_ID"
"""In the environment of processes that torchrun has started."""
_ALIVE, _OVER, _FAILED = 0, -1, -2
"""Signs of life: nothing of note; the run has come to its end; this process ends with an error, of which it has told.
Above 0: a signal of this number asked this process to stop the run."""


class Processes:
    """The processes of this run, of which this is one.

    Args:
        local_rank: this process's number on its machine, from 0.

    Attributes:
        rank: this process's number, from 0.
        size: how many there are.
        agreed: whether `agree` has been passed. Before it processes may fail each by itself, and nothing else may need
            them all.
    """

    def __init__(self, local_rank: int) -> None:
        self.rank, self.size, self.local_rank = dist.get_rank(), dist.get_world_size(), local_rank
        self.agreed = False
        self.on_stop: Callable[[int], Any] = lambda number: None
        """Called, in process 0, when a signal of this number asked another one to stop the run."""
        self.way_on: Callable[[], str] = lambda: "No checkpoint was written"
        """Says from where a lost run can go on."""
        self._control: Any = dist.new_group(backend="gloo", timeout=_WORK)
        self._beats: Any = dist.new_group(backend="gloo", timeout=_SILENCE)
        self._numbers: Any = self._control
        self._state, self._changed, self._left = _ALIVE, threading.Event(), False
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    def take(self, device: str) -> None:
        """Let this process compute on a device, "cpu" or "cuda:N", and nothing else.

        Raises:
            InputError: it is not there.
        """
        if device.startswith("cuda"):
            if self.local_rank >= torch.cuda.device_count():
                raise InputError(
                    f"process {self.rank} is number {self.local_rank + 1} on its machine, which has "
                    f"{torch.cuda.device_count()} CUDA GPUs: start no more than one process for each"
                )
            torch.cuda.set_device(device)  # of NCCL's and Triton's launches

    def connect(self, device: str) -> None:
        """Let the numbers of a step go between the devices; every process calls this, once all have agreed."""
        if device.startswith("cuda"):
            # A collective of NCCL's that lost its peer is given up without taking the process down: the watch does.
            os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "2")
            self._numbers = dist.new_group(backend="nccl", timeout=_WORK)

    @property
    def backend(self) -> str:
        """What carries the numbers: "nccl" or "gloo"."""
        return str(dist.get_backend(self._numbers))

    def threads(self) -> int:
        """Threads for each process: its cores, shared with those of its machine that have the same ones.

        The same everywhere: torch's sums depend on it in their last bits.
        """
        mine = (socket.gethostname(), usable_cores())
        every = self.gathered(mine)
        if os.environ.get("OMP_NUM_THREADS", "1") != "1":  # torchrun sets 1 where the user has set nothing
            return min(self.gathered(torch.get_num_threads()))
        sharing = sum(host == mine[0] and not cores.isdisjoint(mine[1]) for host, cores in every)
        return min(self.gathered(max(1, len(mine[1]) // sharing)))

    def gathered(self, value: Any) -> list[Any]:
        """The values of all processes, plain numbers and text."""
        every: list[Any] = [None] * self.size
        with self._spoken():
            dist.all_gather_object(every, value, group=self._control)
        return every

    def agree(self, problem: str | None = None) -> None:
        """Begin the run, once every process is ready; a process that cannot has a problem.

        Raises:
            InputError: the first problem of all, in every process.
        """
        problems = self.gathered(problem)
        self.agreed = True
        if told := [p for p in problems if p is not None]:
            raise self.common_error(told[0]) from None

    def common_error(self, message: str) -> InputError:
        """An error that every process raises now, of which the first alone tells."""
        self._left = True  # each ends by itself
        error = InputError(message)
        error.everywhere = True
        return error

    def told(self, value: Any) -> Any:
        """What process 0 says: its value, of plain numbers and text."""
        said = [value]
        with self._spoken():
            dist.broadcast_object_list(said, src=0, group=self._control)
        return said[0]

    def told_numbers(self, *numbers: float) -> list[float]:
        """The same of numbers, quickly."""
        said = torch.tensor(numbers, dtype=torch.float64)
        with self._spoken():
            dist.broadcast(said, src=0, group=self._control)
        return said.tolist()

    def equalize(self, tensors: Sequence[Tensor]) -> None:
        """Give tensors the content that they have in process 0."""
        for same in _by_dtype(tensors):
            flat = torch.cat([t.detach().reshape(-1) for t in same])
            with self._spoken():
                dist.broadcast(flat, src=0, group=self._numbers)
            for tensor, part in zip(same, flat.split([t.numel() for t in same])):
                tensor.detach().copy_(part.view_as(tensor))

    def require_equal(self, tensors: Iterable[Tensor], when: str) -> str:
        """Refuse to go on with tensors that differ between the processes, in whichever bit; returns their fingerprint.

        Raises:
            InputError: they differ.
        """
        every = self.gathered(fingerprint(tensors))
        for rank, theirs in enumerate(every):
            if theirs != every[0]:
                raise self.common_error(
                    f"the weights of process {rank} are not those of process 0 {when}: give all processes machines of "
                    f"one kind, and the same versions. {self.way_on()}"
                )
        return every[0]

    def sum_gradients(self, params: Sequence[Tensor]) -> None:
        """Add up the gradients of all processes, in one flat buffer, in which they lie afterwards."""
        for same in _by_dtype(params):
            flat = torch.cat([p.grad.reshape(-1) for p in same if p.grad is not None])
            with self._spoken():
                dist.all_reduce(flat, group=self._numbers)
            for param, grad in zip(same, flat.split([p.numel() for p in same])):
                param.grad = grad.view_as(param)

    def spread(self, functions: Sequence[Callable[[Tensor], Tensor]], stacks: Sequence[Tensor]) -> list[Tensor]:
        """functions[i](stacks[i]) for every i, each matrix computed by one process: all get the same bits.

        The list of all matrices is cut where rows * columns * min(rows, columns) adds up to equal parts.

        Args:
            functions: each works on every matrix of a stack by itself, and keeps its shape.
            stacks: each [matrices, rows, columns], all of one dtype, on one device.
        """
        cuts = _equal_cuts(tuple(tuple(stack.shape) for stack in stacks), self.size)
        sizes = [[(last - first) * stack[0].numel() for first, last in ends] for stack, ends in zip(stacks, cuts)]
        longest = max(map(sum, zip(*sizes)))
        mine = stacks[0].new_zeros(longest)
        computed = [
            function(stack[slice(*ends[self.rank])]).reshape(-1)
            for function, stack, ends in zip(functions, stacks, cuts)
            if ends[self.rank][0] < ends[self.rank][1]
        ]
        if computed:
            torch.cat(computed, out=mine[: sum(map(len, computed))])
        every = mine.new_empty(self.size * longest)
        with self._spoken():
            dist.all_gather(list(every.split(longest)), mine, group=self._numbers)
        parts = [
            row.split([*of_rank, longest - sum(of_rank)]) for row, of_rank in zip(every.split(longest), zip(*sizes))
        ]
        return [torch.cat(of_stack).view_as(stack) for of_stack, stack in zip(zip(*parts), stacks)]

    def ask_to_stop(self, number: int) -> None:
        """Ask process 0 to stop the run, because a signal of this number came."""
        self._state = number
        self._changed.set()

    def leave(self, *, failed: bool) -> None:
        """The end of the run; with failed, of which this process has told, the others end without a word."""
        if self._left:
            return
        self._left = True
        self._state = _FAILED if failed else _OVER if self.rank == 0 else self._state
        self._changed.set()
        self._watcher.join(_PATIENCE)

    @contextmanager
    def _spoken(self) -> Iterator[None]:
        """Around what needs the others: where one of them was lost, the watch says so and ends this process."""
        try:
            yield
        except RuntimeError:
            self._watcher.join(_PATIENCE)
            raise

    def _watch(self) -> None:
        """Exchange signs of life with process 0, or as process 0 with all others, until the run is over."""
        others = range(1, self.size) if self.rank == 0 else [0]
        parent = os.getppid() if _PARENT in os.environ else None
        while True:
            if parent not in (None, os.getppid()):  # torchrun was killed, and can end nobody any more
                parent = None
                os.kill(os.getpid(), signal.SIGTERM)
            if self.rank > 0:
                self._changed.wait(_BEAT)
                self._changed.clear()
            state, signs = self._state, {}
            if self.rank > 0:
                self._sign(0, state)
            for other in others:  # process 0 hears them all first, so that it can tell all of one that was lost
                signs[other] = self._heard(other)
            lost = [other for other, sign in signs.items() if sign is None or (sign == _FAILED and self.rank == 0)]
            if self.rank == 0:
                for sign in signs.values():
                    if sign is not None and sign > 0:
                        self.on_stop(sign)
                state = _FAILED if lost else self._state
                if lost and not self._left:
                    self._tell_of(lost[0])
                for other in others:
                    if other not in lost:
                        self._sign(other, state)
            elif lost and not self._left and (self.rank == 1 or self.local_rank == 0):
                self._tell_of(0)
            if self._left and (lost or state in (_OVER, _FAILED) or signs.get(0) == _OVER):
                return
            if signs.get(0) == _FAILED:
                time.sleep(LAST_WORD)
            if lost or signs.get(0) == _FAILED:
                quit_at_once(1)
            if signs.get(0) == _OVER:
                return

    def _sign(self, other: int, state: int) -> None:
        """Give a sign of life; that nobody hears it is noticed when nothing comes back."""
        with suppress(RuntimeError):
            dist.send(torch.tensor([state]), other, group=self._beats)

    def _heard(self, other: int) -> int | None:
        """Another process's sign of life; None if it is lost."""
        sign = torch.zeros(1, dtype=torch.int64)
        try:
            dist.recv(sign, other, group=self._beats)
        except RuntimeError:
            return None
        return int(sign)

    def _tell_of(self, lost: int) -> None:
        try:
            way_on = self.way_on()
        except OSError as error:
            way_on = f"Its checkpoints cannot be looked for: {error}"
        with suppress(OSError):  # nobody reads it: the watch goes on all the same
            say(f"error: process {lost} of {self.size} was lost. {way_on}", sys.stderr)


def fingerprint(tensors: Iterable[Tensor]) -> str:
    """A hash of the bits of tensors."""
    content = hashlib.blake2b(digest_size=16)
    for tensor in tensors:
        content.update(tensor.detach().cpu().numpy().tobytes())
    return content.hexdigest()


def _by_dtype(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    kinds = groupby(sorted(tensors, key=lambda t: str(t.dtype)), key=lambda t: t.dtype)
    return [list(same) for _, same in kinds]


@functools.lru_cache(maxsize=16)
def _equal_cuts(shapes: tuple[tuple[int, ...], ...], size: int) -> list[list[tuple[int, int]]]:
    """For each stack the matrices [first, last) of each of size processes."""
    costs = np.concatenate([np.full(n, float(rows * columns * min(rows, columns))) for n, rows, columns in shapes])
    owners = ((costs.cumsum() - costs / 2) * size / costs.sum()).astype(int)
    cuts = []
    for of_stack in np.split(owners, np.cumsum([n for n, *_ in shapes])[:-1]):
        ends = np.searchsorted(of_stack, np.arange(size + 1)).tolist()
        cuts.append(list(pairwise(ends)))
    return cuts


def quit_at_once(status: int) -> NoReturn:
    """End this process, whatever its threads wait for."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # a pipe or a disk that takes no more must not keep it alive
            stream.flush()
    os._exit(status)


_joined: list[Processes] = []


def processes_here(local_rank: int, world_size: int) -> Processes | None:
    """The processes that `join` or, with this number on its machine, the host has brought together; None of one alone.

    A program that uses torch.distributed for something else is left alone.
    """
    if world_size > 1 and not _joined:
        _joined.append(Processes(local_rank))
    return _joined[0] if _joined else None


def join() -> Processes | None:
    """Join the others as the environment of torchrun, or of Slurm's srun, has it; None where it tells of none.

    Raises:
        InputError: what it tells cannot be, or the others do not come.
    """
    place = _place(os.environ)
    if place is None:
        return None
    rank, size, local_rank = place
    os.environ.setdefault("MASTER_PORT", "29500")
    try:
        dist.init_process_group("gloo", rank=rank, world_size=size, timeout=_START)
        return processes_here(local_rank, size)
    except (RuntimeError, ValueError, OSError) as error:
        where = f"{os.environ['MASTER_ADDR']} port {os.environ['MASTER_PORT']}"
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"process {rank} of {size} does not reach the others through {where}: {reason}") from None


def _place(environment: Any) -> tuple[int, int, int] | None:
    """This process's number, how many there are, and its number on its machine; None of one process."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    if "RANK" not in environment and "WORLD_SIZE" not in environment:
        names = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")
        if "SLURM_PROCID" not in environment:
            return None
        if "MASTER_ADDR" not in environment:
            if int(environment.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
                raise InputError("srun starts several processes and MASTER_ADDR is not set: export the first machine's")
            return None  # a shell or script of Slurm's, without srun
    words = [environment.get(name, "0" if name == names[2] else "") for name in names]
    if not all(word.isdecimal() for word in words) or not int(words[0]) < int(words[1]):
        told = ", ".join(f"{name}={word}" for name, word in zip(names, words))
        raise InputError(f"the environment has {told}: RANK from 0 to WORLD_SIZE - 1 is wanted, start with torchrun")
    if "MASTER_ADDR" not in environment:
        raise InputError("the environment has RANK and WORLD_SIZE and no MASTER_ADDR: start with torchrun")
    rank, size, local_rank = map(int, words)
    return (rank, size, local_rank) if size > 1 else None
