"""`ns-train` for several processes: `torchrun --nproc-per-node 2 -m loe_field.train loe-image ...`, or Slurm's `srun`.

Alone (`python -m loe_field.train ...`) it is ns-train.
"""

import os
import signal
import sys
import time
import warnings
from contextlib import ExitStack, redirect_stderr, redirect_stdout, suppress
from typing import Any

import torch

from loe_field.errors import InputError
from loe_field.training.distributed import LAST_WORD, Processes, join, quit_at_once
from loe_field.words import say


def main() -> None:
    """The command: options as those of ns-train."""
    if sys.argv[1:2] == ["loe-images"]:  # whose processes share a folder and need nothing else of each other
        from nerfstudio.scripts.train import entrypoint

        entrypoint()
        return
    interrupt = signal.signal(signal.SIGINT, signal.SIG_DFL)  # no handler runs while the others are waited for
    try:
        processes = join()
    except InputError as error:
        say(f"error: {error}", sys.stderr)
        sys.exit(1)
    if processes is None:
        signal.signal(signal.SIGINT, interrupt)
        from nerfstudio.scripts.train import entrypoint

        entrypoint()
        return
    try:
        _train(processes)
    except InputError as error:
        if processes.rank > 0 and error.everywhere:
            time.sleep(LAST_WORD)
        else:
            say(f"error: {error}", sys.stderr)
        processes.leave(failed=True)
        quit_at_once(1)  # without a word to groups that others may have left
    except SystemExit as ended:
        if processes.rank > 0 and ended.code == 1:  # process 0 tells why
            time.sleep(LAST_WORD)
        torch.distributed.destroy_process_group()
        raise
    torch.distributed.destroy_process_group()


def _train(processes: Processes) -> None:
    """Read the command line and train, as one of several processes."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _end_slowly)
    try:
        config = _command_line(quiet=processes.rank > 0)
        from nerfstudio.scripts.train import main as train

        train(config)
    except InputError as error:
        if processes.agreed:
            raise
        processes.agree(str(error))
    except SystemExit as ended:
        if not processes.agreed:  # --help, or options that cannot be, of which the first has told
            with suppress(InputError):
                processes.agree(f"process {processes.rank} has refused its options ({ended.code})")
        raise


def _end_slowly(number: int, _: Any) -> None:
    """End by a signal that no run catches; torchrun sends it when another process was lost, which is told first."""
    time.sleep(LAST_WORD)
    quit_at_once(128 + number)


def _command_line(*, quiet: bool) -> Any:
    """The config that the command line names.

    Raises:
        InputError: it is none of this package's, or starts processes by itself.
    """
    with ExitStack() as silence:
        if quiet:
            warnings.simplefilter("ignore")
            nowhere = silence.enter_context(open(os.devnull, "w"))
            silence.enter_context(redirect_stdout(nowhere))
            silence.enter_context(redirect_stderr(nowhere))
        import tyro
        from nerfstudio.configs.config_utils import convert_markup_to_ansi
        from nerfstudio.configs.method_configs import AnnotatedBaseConfigUnion
        from nerfstudio.utils.rich_utils import CONSOLE

        from loe_field.training.config import LoETrainerConfig

        CONSOLE.quiet = quiet
        config = tyro.cli(AnnotatedBaseConfigUnion, description=convert_markup_to_ansi(__doc__ or ""))
    if not isinstance(config, LoETrainerConfig):
        raise InputError(f"{config.method_name} is no method of loe_field: start it with ns-train")
    if config.machine.num_devices > 1 or config.machine.num_machines > 1:
        raise InputError("the processes are started already: leave --machine.num-devices and num-machines out")
    return config


if __name__ == "__main__":
    main()
