"""Several processes that take each step together."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from processes import launched, only_where_forks_are_safe

from loe_field import LoEMLP
from loe_field.errors import InputError
from loe_field.network.optim import Muon, orthogonalize
from loe_field.training.distributed import _equal_cuts, _place, fingerprint, join
from loe_field.training.step import TrainStep

only_where_forks_are_safe()


class Fit:
    """A pipeline that fits a product of sines, 101 points a step, in one or more processes."""

    capturable, metrics = False, {}

    def __init__(self, processes):
        torch.manual_seed(0)
        self.field = LoEMLP(num_layers=5, layer_width=24, num_frequencies=4)
        points = torch.rand(8, 101, 2, generator=torch.Generator().manual_seed(1))
        self.rank, self.size = (processes.rank, processes.size) if processes else (0, 1)
        self.points = points
        groups = self.field.param_groups()
        self.optimizers = {
            "experts": Muon(groups["experts"], lr=0.02),
            "fields": torch.optim.Adam(groups["fields"], lr=1e-3),
        }
        if processes is not None:
            self.optimizers["experts"].spread = processes.spread

    def draw(self, step):
        first, last = (i * 101 // self.size for i in (self.rank, self.rank + 1))
        self.weight = (last - first) / 101
        return (self.points[step, first:last],)

    def losses(self, batch):
        return {"rgb_loss": (self.field(batch)[:, 0] - (9 * batch).sin().prod(-1)).square().mean()}


def fitted(processes, **options):
    """The weights after 8 steps."""
    fit = Fit(processes)
    take = TrainStep(fit, fit.optimizers, device="cpu", sum_gradients=processes and processes.sum_gradients, **options)
    for number in range(8):
        take(number)
    return [p.detach() for p in fit.field.parameters()]


@pytest.mark.parametrize(
    ("size", "options"), [(2, {}), (3, {"accumulate": {"fields": 2}, "max_norm": {"fields": 0.1}})]
)
def test_processes_take_the_steps_of_one_and_agree_to_the_bit(size, options, tmp_path):
    """101 points make unequal parts."""
    alone = fitted(None, **options)

    def work(rank):
        processes = join()
        weights = fitted(processes, **options)
        processes.require_equal(weights, "at the end")
        torch.save(weights, tmp_path / f"{rank}.pt")
        processes.leave(failed=False)

    with launched(tmp_path, size, work) as processes:
        assert processes.end() == [0] * size, processes.said()
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in range(size)]
    assert len({fingerprint(part) for part in parts}) == 1
    for mine, theirs in zip(parts[0], alone, strict=True):
        torch.testing.assert_close(mine, theirs, atol=2e-4, rtol=0)


def test_matrices_are_spread_and_come_back_as_one_process_computes_them(tmp_path):
    """Shapes of several kinds, and more processes than some stacks have matrices."""
    shapes = [(5, 8, 8), (1, 3, 40), (2, 16, 4)]

    def work(rank):
        processes = join()
        stacks = [torch.randn(shape, generator=torch.Generator().manual_seed(7)) for shape in shapes]
        counted = []

        def counting(stack):
            counted.append(len(stack))
            return orthogonalize(stack)

        results = processes.spread([counting] * 3, stacks)
        for result, stack in zip(results, stacks):
            assert result.shape == stack.shape
            torch.testing.assert_close(result, orthogonalize(stack), atol=1e-5, rtol=0)
        assert sum(processes.gathered(sum(counted))) == 8  # each by one process
        processes.leave(failed=False)

    with launched(tmp_path, 3, work) as processes:
        assert processes.end() == [0] * 3, processes.said()


@pytest.mark.parametrize("size", [1, 2, 5, 64])
def test_each_matrix_has_one_process_and_each_process_its_share(size):
    shapes = ((37, 64, 64), (12, 16, 64), (1, 7, 3))
    cuts = _equal_cuts(shapes, size)
    work = np.zeros(size)
    for (count, rows, columns), of_stack in zip(shapes, cuts):
        assert [first for first, _ in of_stack] == [0, *(last for _, last in of_stack[:-1])]
        assert of_stack[-1][1] == count
        work += [(last - first) * rows * columns * min(rows, columns) for first, last in of_stack]
    assert work.max() <= work.sum() / size + 64**3


@pytest.mark.parametrize("lost", [0, 1])
def test_a_killed_process_ends_the_others_soon_and_in_one_line(lost, tmp_path):
    def work(rank):
        processes = join()
        processes.way_on = lambda: "Go on"
        print("joined")
        while True:  # as a loop that process 0 leads
            processes.told_numbers(1.0)

    with launched(tmp_path, 3, work) as processes:
        deadline = time.monotonic() + 60
        while not all("joined" in said for said in processes.said("out")) and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(processes.pids[lost], signal.SIGKILL)
        killed = time.monotonic()
        statuses = processes.end()
        assert time.monotonic() - killed < 10
        assert statuses == [-9 if rank == lost else 1 for rank in range(3)]
        assert "".join(processes.said()) == f"error: process {lost} of 3 was lost. Go on\n"


def test_a_process_ends_whose_output_nobody_takes(tmp_path):
    def work(rank):
        processes = join()
        sys.stdout = open("/dev/full", "w")  # noqa: SIM115
        sys.stdout.write("not flushed")
        if rank == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        processes.told_numbers(1.0)

    with launched(tmp_path, 2, work) as processes:
        assert processes.end(20) == [-9, 1]
        assert processes.said()[1] == "error: process 0 of 2 was lost. No checkpoint was written\n"


def test_processes_whose_torchrun_was_killed_are_asked_to_stop(tmp_path):
    def work(rank):
        os.environ["TORCHELASTIC_RUN_ID"] = "some"
        asked = []
        signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
        processes = join()
        time.sleep(0.7)
        assert not asked
        os.getppid = lambda: 1
        deadline = time.monotonic() + 10
        while not asked and time.monotonic() < deadline:
            time.sleep(0.01)
        assert asked
        processes.leave(failed=False)

    with launched(tmp_path, 2, work) as processes:
        assert processes.end(20) == [0, 0], processes.said()


def test_a_process_that_ends_by_its_own_error_leaves_the_last_word_to_it(tmp_path):
    def work(rank):
        processes = join()
        processes.agree()
        if rank == 0:
            processes.leave(failed=True)
            raise SystemExit(1)
        processes.told_numbers(1.0)

    with launched(tmp_path, 2, work) as processes:
        assert processes.end() == [1, 1]
        assert processes.said() == ["", ""]


def test_a_process_ends_where_nothing_can_be_written():
    code = "from loe_field.training.distributed import quit_at_once; print('lost', flush=False); quit_at_once(7)"
    with open("/dev/full", "w") as full:
        ended = subprocess.run(
            [sys.executable, "-E", "-c", code], stdout=full, stderr=subprocess.PIPE, text=True, timeout=60
        )
    assert (ended.returncode, ended.stderr) == (7, "")


def test_what_one_process_lacks_ends_all_in_the_same_words(tmp_path):
    """So do weights that differ, and a signal to one asks the first to stop."""

    def work(rank):
        processes = join()
        heard = []
        processes.on_stop = heard.append
        processes.agree()
        if rank == 1:
            processes.ask_to_stop(signal.SIGTERM)
        while not processes.told(bool(heard)):
            time.sleep(0.05)
        for problem in (lambda: processes.require_equal([torch.tensor([1.0 + rank])], "after step 3"),
                        lambda: processes.agree("no picture" if rank == 1 else None)):  # fmt: skip
            with pytest.raises(InputError) as caught:
                problem()
            assert caught.value.everywhere
            print(caught.value)
        print(heard[:1])
        processes.gathered(None)

    with launched(tmp_path, 2, work) as processes:
        assert processes.end() == [0, 0], processes.said()
        first, second = (said.splitlines() for said in processes.said("out"))
    assert first[:2] == second[:2]
    assert "the weights of process 1 are not those of process 0 after step 3" in first[0]
    assert first[1] == "no picture"
    assert (first[2], second[2]) == ("[15]", "[]")


TORCHRUN = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "a"}
SRUN = {"SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1"}


@pytest.mark.parametrize(
    ("environment", "place"),
    [
        ({}, None),
        (TORCHRUN, (1, 4, 1)),
        (SRUN | TORCHRUN, (1, 4, 1)),
        (SRUN | {"MASTER_ADDR": "a"}, (5, 8, 1)),
        (SRUN | {"SLURM_STEP_NUM_TASKS": "1"}, None),
        (SRUN | {"SLURM_STEP_NUM_TASKS": "8"}, "MASTER_ADDR is not set"),
        (TORCHRUN | {"RANK": "4"}, "RANK=4, WORLD_SIZE=4"),
        (TORCHRUN | {"RANK": "one"}, "RANK=one"),
        ({"RANK": "0", "MASTER_ADDR": "a"}, "WORLD_SIZE=,"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, "no MASTER_ADDR"),
        (TORCHRUN | {"RANK": "0", "WORLD_SIZE": "1"}, None),
    ],
)
def test_the_environment_says_which_process_this_is(environment, place):
    if isinstance(place, str):
        with pytest.raises(InputError, match=place):
            _place(environment)
    else:
        assert _place(environment) == place
