"""Names are shown and never obeyed: on consoles and streams of any encoding, and in reports."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from loe_field.words import printable, say

NAMES = ("[red]x[/]", "[/foo]", "a\x1b[2Jb", "a\nb", "a\r\u202eb", "a\udcffb", ":smile:", "é€")


@given(st.text(st.characters(exclude_categories=())), st.sampled_from(["ascii", "latin-1", "utf8", None]))
def test_it_is_one_line_that_every_terminal_takes(text, encoding):
    shown = printable(text, encoding)
    assert shown.isprintable()
    assert shown == "" or shown.splitlines() == [shown]
    shown.encode(encoding or "utf8")


def test_what_is_plain_stays_as_it_is():
    assert printable("Bäume 木 [red]x[/] :smile: $a_b$", "utf8") == "Bäume 木 [red]x[/] :smile: $a_b$"
    assert printable("a\x1b[31m\n\u202eb\udcff é", "ascii") == r"a\x1b[31m\n\u202eb\udcff \xe9"


@pytest.mark.parametrize("encoding", ["ascii", "utf8"])
@pytest.mark.parametrize("name", NAMES)
def test_consoles_and_streams_show_it(name, encoding):
    for make in (lambda stream: Console(file=stream, force_terminal=True), lambda stream: stream):
        stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True)
        say(f"at {name}", make(stream))
        assert stream.buffer.getvalue().decode(encoding) == f"at {printable(name, encoding)}\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "encoding"),
    [("[/foo]\x1b[2J\n\u202eé", "utf8"), ("[red]a\udcffb:smile:\n€", "ascii")],
    ids=["utf8", "ascii"],
)
def test_a_run_of_that_name(name, encoding, tmp_path, monkeypatch):
    """All that a run prints, the host's lines too; picture, experiment and folder have the name."""
    import copy

    import numpy as np
    from nerfstudio.utils.rich_utils import CONSOLE
    from PIL import Image

    from loe_field.adapter.network import LoEConfig
    from loe_field.image.load import load_run
    from loe_field.methods import loe_image
    from loe_field.training.in_process import in_process

    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True)
    monkeypatch.setattr(CONSOLE, "_file", stream)
    path = tmp_path / f"{name.replace('/', '')}.png"
    Image.fromarray(np.zeros((6, 8), np.uint8)).save(path)
    config = copy.deepcopy(loe_image.config)
    config.pipeline.datamanager.data, config.output_dir, config.experiment_name = path, tmp_path / name, name
    config.pipeline.model.loe = LoEConfig(num_layers=3, layer_width=8)
    config.max_num_iterations, config.machine.device_type = 1, "cpu"
    config.set_timestamp()
    config.print_to_terminal()
    with in_process(config, show=True):
        trainer = config.setup()
        trainer.setup()
        trainer.train()
    said = stream.buffer.getvalue().decode(encoding)
    assert said.count(printable(name, encoding)) > 10
    assert "\x1b" not in said
    assert load_run(config.get_base_dir() / "config.yml").picture.width == 8


@pytest.mark.parametrize("name", NAMES)
def test_a_report_on_that_name(name, tmp_path):
    from loe_field.runs.jobs import Outcome
    from loe_field.runs.report import write_report
    from loe_field.runs.suite import Run, Suite, jobs_of

    run = Run(f"<b>{name}$\\x$|")
    suite = Suite(title=f"{name} $\\frac$", runs=[run])
    (job,) = jobs_of(suite, run, tmp_path / f"{name}.png")
    folder = tmp_path / name.replace("/", "") / "#?%"
    folder.mkdir(parents=True)
    (folder / "curve.csv").write_text("step,seconds,psnr\n1,1.0,20.0\n")
    (folder / "reconstruction.png").touch()
    figures = {"psnr": 20.0, "device": "cpu", "versions": {"torch": "2"}, "precision": "fp32"}
    outcomes = [Outcome(job, folder, figures), Outcome(job, folder, problem=f"{name} is not there")]
    write_report(tmp_path / "report", suite, outcomes, [])
    texts = {file: (tmp_path / "report" / file).read_bytes().decode("utf8") for file in ("table.md", "index.html")}
    assert all(part.isprintable() for text in texts.values() for part in text.split("\n"))
    assert "<b>" not in "".join(texts.values())
    assert "%23%3F%25/reconstruction.png" in texts["index.html"]
    assert (tmp_path / "report/curves.png").stat().st_size > 1000
