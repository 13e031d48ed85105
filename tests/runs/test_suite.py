"""What a suite's file may say, and what it makes of it."""

import re
from pathlib import Path

import pytest

from loe_field.errors import InputError
from loe_field.files import last_line
from loe_field.runs.content import content_of
from loe_field.runs.report import table
from loe_field.runs.suite import jobs_of, read_suite, search_jobs

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.toml"))


def suite_of(tmp_path, text):
    path = tmp_path / "suite.toml"
    path.write_text(text)
    return read_suite(path)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_shipped_suite_is_one(path):
    suite = read_suite(path)
    jobs = [job for run in suite.runs if not run.missing for job in jobs_of(suite, run, None)]
    assert len({job.folder(Path("/r")) for job in jobs}) == len(jobs) >= len(suite.seeds)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_baselines_of_shipped_suites_have_a_batch(path):
    """Otherwise they take their authors', the whole picture mostly, where the suite's text says 8,192."""
    suite = read_suite(path)
    for job in [job for run in suite.runs for job in jobs_of(suite, run, None) if job.method.startswith("loe-image")]:
        if job.run.baseline or "pipeline.model.network" in job.overrides:
            assert job.overrides.get("pipeline.datamanager.pixels_per_batch") == 8192, job.run.name


def test_jobs(tmp_path):
    suite = suite_of(
        tmp_path,
        """
        title = "t"
        seeds = [1, 2]
        overrides = { max_num_iterations = 9, "pipeline.model.num_layers" = 4 }
        [[runs]]
        name = "Deep & wide"
        overrides = { "pipeline.model.num_layers" = 6, "pipeline.model.levels" = [2, 0, 4, 0.5] }
        [search]
        options = ["optimizers.fields.optimizer.lr"]
        values = [1e-3, 2e-3]
        seed = 7
        overrides = { max_num_iterations = 5 }
        """,
    )
    (run,) = suite.runs
    picture = tmp_path / "cat.png"
    picture.touch()
    first, second = jobs_of(suite, run, picture, best=2e-3)
    wanted = f"loe-image --machine.seed 1 --data {picture} --max-num-iterations 9 --pipeline.model.num-layers 6"
    assert " ".join(first.words) == (
        f"{wanted} --pipeline.model.levels 2 0 4 0.5 --optimizers.fields.optimizer.lr 0.002"
    )
    assert second.seed == 2
    assert first.folder(Path("/r")).parent == Path("/r/deep-wide/cat/loe-image")
    assert first.key != second.key
    searches = search_jobs(suite, run, picture)
    assert [job.search_value for job in searches] == [1e-3, 2e-3]
    assert searches[0].seed == 7
    assert searches[0].overrides["max_num_iterations"] == 5
    assert searches[0].overrides["optimizers.fields.optimizer.lr"] == 1e-3


def test_a_baseline_and_a_dataparser_end_the_command(tmp_path):
    suite = suite_of(
        tmp_path,
        """
        title = "t"
        dataparser = ["blender-data"]
        overrides = { max_num_iterations = 9 }
        [[runs]]
        name = "small"
        baseline = ["hash-grid", "--log2-hashmap-size", "12"]
        [[runs]]
        name = "large"
        baseline = ["hash-grid", "--log2-hashmap-size", "16"]
        """,
    )
    small, large = (jobs_of(suite, run, None)[0] for run in suite.runs)
    options = "loe-image --machine.seed 42 --max-num-iterations 9"
    assert " ".join(small.words) == f"{options} hash-grid --log2-hashmap-size 12 blender-data"
    assert small.key != large.key


def test_a_method_for_comparison_is_shown_beside_the_users_own(tmp_path, monkeypatch):
    suite = suite_of(
        tmp_path,
        'title = "t"\nmethod = "loe-nerf"\n[[runs]]\nname = "a"\n[[runs]]\nname = "b"\nmethod = "loe-nerf-adam"',
    )
    listed, compared = (jobs_of(suite, run, None)[0] for run in suite.runs)
    shown = "loe-nerf-adam=loe_field.runs.baseline_methods:loe_nerf_adam"
    monkeypatch.delenv("NERFSTUDIO_METHOD_CONFIGS", raising=False)
    assert (listed.environment, compared.environment) == ({}, {"NERFSTUDIO_METHOD_CONFIGS": shown})
    monkeypatch.setenv("NERFSTUDIO_METHOD_CONFIGS", "mine=my.methods:mine")
    assert (listed.environment, compared.environment) == (
        {},
        {"NERFSTUDIO_METHOD_CONFIGS": f"{shown},mine=my.methods:mine"},
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("title = ", "is not TOML"),
        ('title = "t"', r"lists no \[\[runs\]\]"),
        ('title = "t"\n[[runs]]\n', "run 1 has no 'name'"),
        ('[[runs]]\nname = "a"', "has no 'title'"),
        ('title = "t"\nsteps = 3\n[[runs]]\nname = "a"', "says 'steps': known are"),
        ('title = "t"\n[[runs]]\nname = "a b"\n[[runs]]\nname = "A-B"', "2 runs named like 'a-b'"),
        ('title = "t"\n[[runs]]\nname = "a"\n[[figures]]\nname = "f"\ntitle = "F"\nruns = ["b"]', "figure of 'b'"),
        ('title = "t"\n[[runs]]\nname = "a"\n[search]\nvalues = [1]', "search has no 'options'"),
        ('title = "t"\n[[runs]]\nname = 5', "run 1 says name = 5: text is wanted"),
        ('title = "t"\nseeds = 42\n[[runs]]\nname = "a"', r"seeds = 42: a list \(a whole number each\) is wanted"),
        ('title = "t"\nseeds = [true]\n[[runs]]\nname = "a"', "a whole number each"),
        ('title = "t"\ndata = "x.png"\n[[runs]]\nname = "a"', r"data = 'x.png': a list \(text each\) is wanted"),
        ('title = "t"\nfigures = 3\n[[runs]]\nname = "a"', r"figures = 3: a list \(a table each\) is wanted"),
        ('title = "t"\noverrides.pipeline.model.num_layers = 3\n[[runs]]\nname = "a"', "dotted names in quotes"),
        ('title = "t"\ntrain_seconds = "9"\n[[runs]]\nname = "a"', "train_seconds = '9': a finite number is wanted"),
        ('title = "t"\nseeds = []\n[[runs]]\nname = "a"', r"seeds = \[\]: give at least one"),
        ('title = "t"\nseeds = [1, 1]\n[[runs]]\nname = "a"', r"seeds = \[1, 1\]: give at least one, each once"),
        ('title = "t"\nseeds = [-1]\n[[runs]]\nname = "a"', r"seeds = \[-1\]: .* from 0 on and below 2\^32"),
        ('title = "t"\ntrain_seconds = nan\n[[runs]]\nname = "a"', "train_seconds = nan: a finite number is wanted"),
        ('title = "t"\ntrain_seconds = -1\n[[runs]]\nname = "a"', "train_seconds = -1: it must be above 0"),
        ('title = "t"\ntarget_psnr = inf\n[[runs]]\nname = "a"', "target_psnr = inf: a finite number is wanted"),
        (f'title = "t"\ntarget_psnr = 1{"0" * 400}\n[[runs]]\nname = "a"', "a finite number is wanted"),
        ('title = "t"\n[[runs]]\nname = "a"\noverrides = { target_psnr = nan }', "run 1 says overrides = .*not nan"),
        ('title = "t"\n[[runs]]\nname = "a"\noverrides = { seed = 1979-05-27 }', "run 1 says overrides = .*text, num"),
        (
            'title = "t"\n[[runs]]\nname = "a"\noverrides = { output_dir = "x" }',
            "run 'a' says 'output_dir' in overrides",
        ),
        ('title = "t"\noverrides = { "machine.seed" = 1 }\n[[runs]]\nname = "a"', "says 'machine.seed' in overrides"),
        ('title = "t"\n[[runs]]\nname = " "', "a run named ' '"),
        ('title = "t"\n[[runs]]\nname = "a\\nb"', r"a run named 'a\\nb'"),
        ('title = "t"\n[[runs]]\nname = "a"\n[search]\noptions = ["lr"]\nvalues = []\nseed = 1', "says values = "),
        ('title = "t"\n[[runs]]\nname = "a"\n[search]\noptions = ["lr"]\nvalues = [nan]\nseed = 1', "a finite number"),
        ('title = "t"\n[[runs]]\nname = "a"\n[search]\noptions = []\nvalues = [1]\nseed = 1', "says options = "),
        ('title = "t"\n[[runs]]\nname = "a"\n[search]\noptions = ["lr"]\nvalues = [1]\nseed = -1', "says seed = "),
        (f"title = {'[' * 9000}", "is not TOML"),
        ('title = "t"\n[[runs]]\nname = 5 6', r"is not TOML: .*line 3"),
        (
            'title = "t"\n[[runs]]\nname = "a"' + 2 * '\n[[figures]]\nname = "f"\ntitle = "F"\nruns = []',
            "2 figures nam",
        ),
        ('title = "t"\n[[runs]]\nname = "a"\n[[figures]]\nname = "curves"\ntitle = "F"\nruns = []', "not curves"),
        ('title = "t"\n[[runs]]\nname = "a"\n[[figures]]\nname = "../f"\ntitle = "F"\nruns = []', "without folders"),
    ],
)
def test_mistakes_are_named(tmp_path, text, words):
    with pytest.raises(InputError, match=words) as error:
        suite_of(tmp_path, text)
    assert str(tmp_path / "suite.toml") in str(error.value)
    assert "\n" not in str(error.value)


def test_a_byte_order_mark_is_no_mistake(tmp_path):
    assert suite_of(tmp_path, '\ufefftitle = "t"\n[[runs]]\nname = "a"').title == "t"


def test_a_job_s_folder_changes_with_the_content_of_its_data(tmp_path):
    suite = suite_of(tmp_path, 'title = "t"\n[[runs]]\nname = "a"')
    scene = tmp_path / "scene"
    (scene / "images").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (scene / "more").symlink_to(tmp_path / "elsewhere")
    (scene / "circle").symlink_to(scene)
    seen = set()

    def folder():
        content_of.cache_clear()
        (job,) = jobs_of(suite, suite.runs[0], scene)
        assert job.folder(Path("/r")) == job.folder(Path("/r"))
        return job.folder(Path("/r")).name

    for name, text in (("a", "1"), ("a", "2"), ("images/b", "1"), ("more/c", ""), ("more/d", "")):
        (scene / name).write_text(text)
        assert folder() not in seen
        seen.add(folder())


def test_a_table_without_results_says_no_machine(tmp_path):
    suite = suite_of(tmp_path, 'title = "t"\nseeds = [1, 2]\n[[runs]]\nname = "a"')
    assert table(suite, [], []).rstrip().endswith("\n\nSeeds 1, 2.")


def test_a_logs_last_words_are_not_the_frame_around_them():
    box = "steps\n╭─ Unrecognized ─╮\n│ Unknown: --x   │\n│ ────────────── │\n│ see --help     │\n╰────────────────╯\n"
    assert last_line(box.encode()) == "Unknown: --x"
    assert last_line(box.encode() + b"error: other\n\n") == "error: other"
    assert last_line("│ half a box │\n╰────────────╯".encode()) == "╰────────────╯"
    assert last_line(b"10 %\r20 %\r") == "20 %"
    assert last_line(b"") == ""


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match=re.escape(str(tmp_path / "none.toml"))):
        read_suite(tmp_path / "none.toml")
