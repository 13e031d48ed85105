"""The first screen keeps its size, links lead somewhere, the site builds, and the tutorial's blocks run."""

import importlib.util
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import tyro

from loe_field.cli.export import Export
from loe_field.cli.render import Render

ROOT = Path(__file__).parents[1]


def test_readme_is_one_screen_and_its_links_lead_somewhere():
    text = (ROOT / "README.md").read_text("utf8")
    assert len(text.splitlines()) <= 130
    assert "make test" in text.splitlines()  # .ci/run looks for it
    links = [link for link in re.findall(r"\]\(([^)#]+)", text) if "://" not in link]
    assert len(links) > 10
    assert [link for link in links if not (ROOT / link).exists()] == []


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="needs the extra docs")
def test_the_site_builds_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "num_frequencies" in (tmp_path / "api" / "network" / "index.html").read_text("utf8")


@pytest.mark.slow
def test_the_tutorial_runs_as_it_stands(tmp_path):
    command = [sys.executable, "docs/run_blocks.py", "docs/tutorial.md", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    assert (tmp_path / "eyes.png").exists()
    scenes = tmp_path / "outputs" / "scene"
    assert (scenes / "nerfacto-loe" / "first" / "metrics.json").exists()
    # An object on white without alpha: where fog before the cameras takes the white, it has 10.7 dB.
    assert json.loads((scenes / "loe-nerf" / "first" / "metrics.json").read_text())["psnr"] > 15


def test_the_render_and_export_commands_of_the_docs_lack_no_option():
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    wanted = re.compile(r"\bloe-(?:render|export) --load-config [^`\n]* --output [^`\n]*")
    lines = {line for page in pages for line in wanted.findall(page.read_text("utf8"))}
    commands = {"loe-render": Render, "loe-export": Export}
    assert len(lines) > 5
    for line in sorted(lines):
        name, *options = shlex.split(line, comments=True)
        tyro.cli(commands[name], args=options)
