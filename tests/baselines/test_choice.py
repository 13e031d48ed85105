"""A baseline as a subcommand."""

from dataclasses import dataclass

import pytest
import tyro

from loe_field.baselines import FinerOptions, HashGridOptions, SirenOptions
from loe_field.baselines.choice import BaselineChoice, HashGridChoice


@dataclass
class Picture:
    baseline: BaselineChoice = None
    width: int = 3


@dataclass
class Scene:
    baseline: HashGridChoice = None


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], None),
        (["loe"], None),
        (["siren", "--omega-0", "20"], SirenOptions(omega_0=20)),
        (["finer"], FinerOptions()),
        (["hash-grid", "--log2-hashmap-size", "9"], HashGridOptions(log2_hashmap_size=9)),
    ],
    ids=str,
)
def test_options_belong_to_the_baseline_that_is_chosen(words, expected):
    config = tyro.cli(Picture, args=["--width", "4", *words])
    assert config.width == 4
    assert config.baseline == expected
    assert type(config.baseline) is type(expected)


def test_a_scene_has_a_smaller_hash_grid():
    assert tyro.cli(Scene, args=["hash-grid"]).baseline == HashGridOptions(log2_hashmap_size=15, max_resolution=512)
    assert tyro.cli(Scene, args=[]).baseline is None


def test_options_appear_in_help_only_when_chosen(capsys):
    shown = []
    for words in ([], ["siren"]):
        with pytest.raises(SystemExit):
            tyro.cli(Picture, args=[*words, "--help"])
        shown.append(capsys.readouterr().out)
    assert "omega" not in shown[0]
    assert "SIREN: a sine after every layer" in shown[0]
    assert "--omega-0" in shown[1]
