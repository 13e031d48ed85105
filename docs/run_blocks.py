"""Run the code blocks of a page in the docs, in order, as they stand.

    python docs/run_blocks.py docs/tutorial.md [FOLDER]

Blocks of Python up to the next block of bash are one program. A block with a title is written into the file of that
name. Blocks of bash run one by one. All run in FOLDER, or in a temporary one, where `examples` is the clone's. Blocks
marked `text` are not run.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FENCE = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)


def run(page: Path, folder: Path) -> None:
    """Run a page's blocks in a folder; the first one that fails ends the program."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "examples").exists():
        (folder / "examples").symlink_to(ROOT / "examples")
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    python: list[tuple[int, str]] = []
    text = page.read_text("utf8")

    def run_python() -> None:
        if python:
            program = "\n".join(f"# line {line}\n{code}" for line, code in python)
            timed(python[0][0], [sys.executable, "-c", program])
            python.clear()

    def timed(line: int, command: list[str]) -> None:
        begin = time.perf_counter()
        if status := subprocess.run(command, cwd=folder, env=environment).returncode:
            sys.exit(f"error: {page}:{line}: the block ended with {status}")
        print(f"{page}:{line}: {time.perf_counter() - begin:.0f} s", flush=True)

    for block in FENCE.finditer(text):
        language, title, code = block.groups()
        line = text[: block.start()].count("\n") + 1
        if title:
            (folder / title).write_text(code, "utf8")
        elif language == "python":
            python.append((line, code))
        elif language == "bash":
            run_python()
            timed(line, ["bash", "-euc", code])
    run_python()


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    if len(sys.argv) == 3:
        run(Path(sys.argv[1]), Path(sys.argv[2]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            run(Path(sys.argv[1]), Path(temporary))
