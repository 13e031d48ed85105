"""`python -m loe_field.train` in several processes; they are forked, so that the host is imported once."""

import copy
import os
import signal
import socket
import sys
import time

import pytest
import torch
from processes import free_port, launched, only_where_forks_are_safe
from support import FAST, read_metrics, run_folder

from loe_field import methods, train
from loe_field.adapter.trainer import SignalTrainer
from loe_field.training.config import LoETrainerConfig

only_where_forks_are_safe()
pytestmark = pytest.mark.slow
FEW = (*FAST, "--num-threads", "1", "--pipeline.datamanager.pixels-per-batch", "700")
"""Options of short runs. Four batches of 600 pixels; 7 batches of 343 or 342 with 350."""


@pytest.fixture(scope="module", autouse=True)
def _host():
    """Imported here, once: the processes have it from their parent."""
    import nerfstudio.scripts.train  # noqa: F401


def command(*words):
    def run(rank):
        sys.argv = ["train", *map(str, words)]
        train.main()

    return run


def to_the_end(folder, size, *words):
    with launched(folder, size, command(*words)) as processes:
        return processes.end(), processes.said("out"), processes.said("err")


def checkpoints(output):
    return sorted(output.glob("*/*/*/nerfstudio_models/*.ckpt"))


def test_two_processes_fit_as_one_does_and_runs_go_on_with_any_number(small_picture, tmp_path, call_main):
    """The pass goes on where it was: 25 steps lie within one."""
    until = ("--optimizers.experts.scheduler.max-steps", 50, "--optimizers.fields.scheduler.max-steps", 50)
    words = ("loe-image-smooth", "--data", small_picture, *FEW, *until)
    assert call_main(train.main, "train", *words, "--max-num-iterations", 50, "--output-dir", tmp_path / "one")[0] == 0
    alone = run_folder(tmp_path / "one", "loe-image-smooth")

    short = (*words, "--max-num-iterations", 25, "--output-dir")
    statuses, out, err = to_the_end(tmp_path / "1", 2, *short, tmp_path / "two")
    assert statuses == [0, 0], err
    assert "2 processes (gloo): 600 pixels a step, 300 in each" in out[0]
    assert "the weights of all 2 processes are the same to the bit" in out[0]
    assert (out[1], err[1]) == ("", "")
    half = run_folder(tmp_path / "two", "loe-image-smooth")
    assert read_metrics(half)["num_processes"] == 2
    longer = ("--load-dir", half / "nerfstudio_models", "--output-dir")
    for size in (1, 3):
        output = tmp_path / f"then {size}"
        further = (*words, "--max-num-iterations", 50, *longer, output)
        statuses, out, err = to_the_end(tmp_path / f"{size} further", size, *further)
        assert statuses == [0] * size, err
        run = run_folder(output, "loe-image-smooth")
        assert read_metrics(run)["num_steps"] == 50
        print(read_metrics(alone)["psnr"], read_metrics(run)["psnr"])
        assert "going on after step 25" in out[0]


def test_what_cannot_be_is_said_once(tmp_path, small_picture):
    for number, (words, status, said) in enumerate(
        [
            (("loe-image", "--data", tmp_path / "none.png"), 1, "none.png"),
            (("loe-image", "--data", small_picture, "--machine.seed", -1), 1, "error: --machine.seed is -1"),
            (("loe-image", "--max-num-iteration", 3), 2, "--max-num-iteration,"),
            (("nerfacto",), 1, "error: nerfacto is no method of loe_field"),
            (("loe-image", "--data", tmp_path), 1, "error: "),
            (("loe-image", "--data", small_picture, "--machine.num-devices", 2), 1, "error: the processes are started"),
            (("loe-image", "--data", small_picture, "--pipeline.datamanager.pixels-per-batch", 3), 1,
             "error: a step takes 3 pixels, too few for 2 processes"),
        ]
    ):  # fmt: skip
        statuses, _, err = to_the_end(tmp_path / str(number), 2, *words, "--output-dir", tmp_path / "out")
        assert statuses == [status, status], err
        assert err[1] == ""
        assert err[0].count(said) == 1
        assert "Traceback" not in err[0]
    assert not (tmp_path / "out").exists()


def test_a_killed_process_and_a_signal_to_one(small_picture, tmp_path, call_main):
    """A run that lost a process goes on with one; one that a signal asks to stop comes to its end in an orderly way."""
    words = ("loe-image", "--data", small_picture, *FEW, "--steps-per-save", 20, "--output-dir")
    for lost in (0, 1):
        output = tmp_path / f"without {lost}"
        with launched(tmp_path / f"{lost}", 2, command(*words, output)) as processes:
            wait_for(lambda output=output: checkpoints(output))
            os.kill(processes.pids[lost], signal.SIGKILL)
            killed = time.monotonic()
            statuses, err = processes.end(), processes.said()
        assert time.monotonic() - killed < 10
        assert statuses == [-9 if rank == lost else 1 for rank in range(2)]
        last = checkpoints(output)[-1]
        way_on = f"The last good checkpoint is {last}: go on with --load-dir {last.parent}"
        lines = [line for line in err[1 - lost].splitlines() if "error" in line]
        assert lines == [f"error: process {lost} of 2 was lost. {way_on}"]
        assert "Traceback" not in err[1 - lost]
    done = int(last.stem.split("-")[1])
    further = (*words, tmp_path / "further", "--load-dir", last.parent, "--max-num-iterations", done + 5)
    assert call_main(train.main, "train", *further)[0] == 0
    assert read_metrics(run_folder(tmp_path / "further"))["num_steps"] == done + 5

    for asked in (0, 1):
        output = tmp_path / f"{asked} asked"
        with launched(tmp_path / f"asked {asked}", 2, command(*words, output)) as processes:
            wait_for(lambda output=output: checkpoints(output))
            os.kill(processes.pids[asked], signal.SIGTERM)
            assert processes.end() == [143, 143], processes.said()
            assert "stopping after this step" in processes.said("out")[0]
        assert read_metrics(run_folder(output))["num_steps"] < 6000


def test_a_signal_to_all_at_the_end_leaves_the_first_its_time(small_picture, tmp_path, monkeypatch):
    """While process 0 evaluates and writes the others have nothing to do, and must not end before it."""
    words = ("loe-image", "--data", small_picture, *FEW, "--max-num-iterations", 3, "--output-dir", tmp_path / "out")
    write = SignalTrainer.write_results

    def slowly(trainer, result):
        print("writes", flush=True)
        time.sleep(3)
        return write(trainer, result)

    monkeypatch.setattr(SignalTrainer, "write_results", slowly)
    with launched(tmp_path / "said", 2, command(*words)) as processes:
        wait_for(lambda: "writes" in processes.said("out")[0])
        for pid in processes.pids:
            os.kill(pid, signal.SIGINT)
        assert processes.end() == [130, 130], processes.said()
    assert read_metrics(run_folder(tmp_path / "out"))["num_steps"] == 3


def test_the_viewer_and_its_pause_are_those_of_the_first_process(small_picture, tmp_path, monkeypatch):
    """Another one comes to look at the options when the viewer listens already."""
    port, output = free_port(), tmp_path / "out"
    words = ("loe-image", "--data", small_picture, *FEW, "--vis", "viewer", "--viewer.websocket-port", port)
    look = LoETrainerConfig.save_config

    def late(config):
        if os.environ["RANK"] == "1":
            wait_for(lambda: socket.socket().connect_ex(("127.0.0.1", port)) == 0)
        look(config)

    turn = SignalTrainer._next_turn
    monkeypatch.setattr(LoETrainerConfig, "save_config", late)
    monkeypatch.setattr(SignalTrainer, "_next_turn", lambda *given: (print("a turn", flush=True), turn(*given))[1])
    with launched(tmp_path / "said", 2, command(*words, "--start-paused", "True", "--output-dir", output)) as processes:
        wait_for(lambda: "a turn" in processes.said("out")[0] or "error" in "".join(processes.said()))
        os.kill(processes.pids[0], signal.SIGTERM)
        assert processes.end() == [143, 143], processes.said()
        assert "error" not in processes.said()[0]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_at_the_start_ends_all_without_a_traceback(number, small_picture, tmp_path, monkeypatch):
    """To all, as a terminal's Ctrl-C; the options are being looked at."""
    monkeypatch.setattr(LoETrainerConfig, "save_config", lambda config: (print("looks", flush=True), time.sleep(60)))
    with launched(tmp_path / "said", 2, command("loe-image", "--data", small_picture, *FEW)) as processes:
        wait_for(lambda: all("looks" in said for said in processes.said("out")))
        for pid in processes.pids:
            os.kill(pid, number)
        assert set(processes.end(20)) <= {128 + number, 1}
        assert "Traceback" not in "".join(processes.said())


def test_processes_that_the_host_starts_are_the_same(small_picture, tmp_path):
    """As `--machine.num-devices 2` starts them on GPUs."""

    def worker(rank):
        from nerfstudio.scripts.train import train_loop

        torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
        config = copy.deepcopy(methods.loe_image.config)
        config.data = config.pipeline.datamanager.data = small_picture
        config.pipeline.datamanager.pixels_per_batch, config.pipeline.model.loe.num_layers = 700, 5
        config.max_num_iterations, config.num_threads, config.output_dir = 5, 1, tmp_path / "out"
        config.set_timestamp()
        train_loop(rank, 2, config, rank)

    with launched(tmp_path / "said", 2, worker) as processes:
        assert processes.end() == [0, 0], processes.said()
        assert "2 processes (gloo): 600 pixels a step, 300 in each" in processes.said("out")[0]
    assert read_metrics(run_folder(tmp_path / "out"))["num_processes"] == 2


def wait_for(happened, seconds=60):
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_time_limit_and_a_scene(scene, small_picture, tmp_path):
    """Process 0 has the clock."""
    limited = ("--max-train-seconds", 1, "--output-dir", tmp_path / "picture")
    statuses, _, err = to_the_end(tmp_path / "1", 2, "loe-image", "--data", small_picture, *FEW, *limited)
    assert statuses == [0, 0], err
    words = ("loe-nerf", "--data", scene, "--max-num-iterations", 6, "--num-threads", 1, "--output-dir", tmp_path)
    rays = ("--pipeline.datamanager.train-num-rays-per-batch", 65, "--steps-per-eval-all-images", 3)
    statuses, out, err = to_the_end(tmp_path / "2", 2, *words, *rays)
    assert statuses == [0, 0], err
    assert "2 processes (gloo): 65 rays a step, 33 in each" in out[0]
    assert read_metrics(run_folder(tmp_path, "loe-nerf"))["num_steps"] == 6
