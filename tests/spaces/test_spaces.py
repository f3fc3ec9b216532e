"""Every space of the repository at every scale with every pair: what of it can be known without training."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas
import pytest
import timm

import trainables.models  # noqa: F401 - the names of our own
from search import rehearsal, run
from search.preflight import preflight
from search.recipes import family_recipe
from search.rehearsal import rehearse
from search.settings import compose, pinned_fields, resolve
from search.space import SearchSpace
from search.space_file import load_space
from tests.search import studies

FILES = {path.stem: path for path in sorted((studies.ROOT / "spaces").glob("*.py")) if "STUDY" in path.read_text()}
STUDIES = {stem: load_space(str(path)) for stem, path in FILES.items()}
DIRECTIONS = ("vit_to_mlp", "vit_to_cnn", "cnn_to_vit", "cnn_to_mlp", "mlp_to_cnn", "mlp_to_vit")
SCALES = ("embedded", "cifar100", "imagenet")
EVERY = [
    (stem, scale, pair)
    for stem, study in STUDIES.items()
    for scale, its in study.scales.items()
    for pair in (its.pairs or [None])
]
# An ablation's pairs are the directions' own
LARGE = [row for row in EVERY if row[1] != "embedded" and row[0] != "eps_ablation"]
LARGE += [("eps_ablation", scale, next(iter(STUDIES["eps_ablation"].scales[scale].pairs))) for scale in SCALES[1:]]
SMOKED = [stem for stem in STUDIES if stem not in ("vit_to_mlp", "eps_ablation")]  # these have tests of their own


def settings(stem, scale, pair):
    flags = {"name": "n", "space": str(FILES[stem]), "scale": scale}
    return resolve(STUDIES[stem], flags, [f"pair={pair}"] if pair else [])


def test_they_are_all_there_at_all_scales():
    assert set(STUDIES) >= {
        *DIRECTIONS, "resnet34_to_resnet18", "beitv2_to_cyclemlp", "eps_ablation", "distiller_comparison",
    }  # fmt: skip
    assert all(tuple(study.scales) == SCALES for study in STUDIES.values())


@pytest.mark.parametrize(("stem", "scale", "pair"), EVERY)
def test_settings_models_and_the_whole_search_function_hold(stem, scale, pair):
    resolved = settings(stem, scale, pair)
    assert resolved.pair == pair
    assert timm.is_model(resolved.teacher) and (timm.is_model(resolved.student) or ":" in resolved.student)
    recipe = {**family_recipe(resolved.recipes, "token", resolved.epochs, None)[0], **resolved.recipe}
    space = SearchSpace(STUDIES[stem].space, {}, pinned_fields(resolved, recipe))

    def composed(fields):
        return compose(resolved, recipe, [1, 2, 3, 4], fields)

    space.check(0, composed)
    for guess in resolved.first_guesses:
        assert space.guess(guess, composed) == guess


@pytest.mark.parametrize("stem", STUDIES)
def test_the_embedded_scale_passes_every_check_and_a_step_of_all_it_trains(stem):
    for pair in STUDIES[stem].scales["embedded"].pairs or [None]:
        plan, splits = preflight(STUDIES[stem], settings(stem, "embedded", pair))
        rehearse(plan, splits)
        assert plan.available == [1, 2, 3, 4] and plan.notes == []


@pytest.mark.parametrize("stem", DIRECTIONS)
def test_a_files_table_has_its_pairs_and_no_others(stem):
    words = ast.get_docstring(ast.parse(FILES[stem].read_text())).split()
    listed = {word for word in words if re.fullmatch(r"[a-z0-9_]+-[a-z][a-z0-9_]+", word)}
    assert listed == {pair for scale in STUDIES[stem].scales.values() for pair in scale.pairs}


@pytest.mark.parametrize("stem", DIRECTIONS)
def test_the_readmes_table_has_the_same_pairs(stem):
    (row,) = re.findall(rf"^\| `{stem}` \|(.*)\|(.*)\|$", (studies.ROOT / "README.md").read_text(), re.MULTILINE)
    for cell, scale in zip(row, ("cifar100", "imagenet"), strict=True):
        assert re.findall("`(.+?)`", cell) == list(STUDIES[stem].scales[scale].pairs)


def test_an_ablation_has_every_directions_pairs():
    ablation = STUDIES["eps_ablation"]
    assert set(ablation.scales["embedded"].pairs) == set(DIRECTIONS)
    for scale in SCALES[1:]:
        theirs = [pair for stem in DIRECTIONS for pair in STUDIES[stem].scales[scale].pairs]
        assert sorted(ablation.scales[scale].pairs) == sorted(theirs)


def test_an_ablation_tries_each_eps_once_and_stops_none():
    plan, _ = preflight(STUDIES["eps_ablation"], settings("eps_ablation", "embedded", "cnn_to_vit"))
    assert plan.settings.scheduler == "none" and plan.trials == plan.settings.trials == len(plan.grid)
    assert sorted(point["eps"] for point in plan.grid) == [0.8, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 2.0, 3.0]


def test_the_authors_own_settings_are_where_they_are_known():
    assert settings("vit_to_cnn", "cifar100", "swin_t-resnet18").recipe["lr"] == 0.1
    assert "lr" not in settings("vit_to_cnn", "cifar100", "swin_t-mobilenetv2").recipe
    assert settings("vit_to_cnn", "imagenet", "deit_t-resnet18").first_guesses[0]["eps"] == 1.5
    assert settings("eps_ablation", "cifar100", "vit_s-resnet18").ofa_loss_weight == 0.1


def test_loading_them_loads_neither_torch_nor_ray_and_a_copy_elsewhere_works(tmp_path):
    for stem, path in FILES.items():
        shutil.copyfile(path, tmp_path / f"my_{stem}.py")
    code = (
        "import sys; from pathlib import Path; from search.space_file import load_space\n"
        "for path in Path().glob('*.py'): load_space(str(path))\n"
        "assert not {'torch', 'ray', 'optuna', 'timm', 'mlflow'} & set(sys.modules), sys.modules.keys()"
    )
    environment = {**os.environ, "PYTHONPATH": str(studies.ROOT)}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, env=environment)


@pytest.mark.long
@pytest.mark.parametrize(("stem", "scale", "pair"), LARGE)
def test_a_larger_scale_passes_a_dry_run(stem, scale, pair, monkeypatch, capfd, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(rehearsal, "TIMED_STEPS", 1)
    monkeypatch.setattr(rehearsal, "TIMED_STEP_S", 0.1)
    # A CPU's bfloat16 is ten times slower; test_rehearsal.py has a step of it.
    chosen = ["--set", "amp=false", *([f"pair={pair}"] if pair else [])]
    assert run.main(["--space", str(FILES[stem]), "--scale", scale, "--dry-run", *chosen]) == 0
    out = capfd.readouterr().out
    assert (f"pair       {pair}" in out) == bool(pair)
    assert "a full trial" in out and "nothing was trained or written" in out
    assert list(Path().iterdir()) == []


@pytest.mark.long
@pytest.mark.parametrize("stem", SMOKED)
def test_the_embedded_scale_passes_a_smoke_study(stem, tmp_path):
    ran = studies.run("--space", str(FILES[stem]), "--smoke", "--name", stem, "--concurrency", "1", cwd=tmp_path)
    assert ran.code == 0, ran.err + ran.out
    assert "trials: 3 complete" in ran.out and ran.err == ""


@pytest.mark.long
def test_an_ablation_ends_with_its_last_value_however_many_trials_were_asked_for(tmp_path):
    few = ("--space", str(FILES["eps_ablation"]), "--smoke", "--name", "smoke", "--trials", "50")
    ran = studies.run(*few, "--set", "pair=cnn_to_mlp", "search.eps=1.0|1.5|4.0", cwd=tmp_path)
    assert ran.code == 0, ran.err + ran.out
    assert "the grid has 3 points, so there are no more trials, though 50 were asked" in ran.out
    assert "trials: 3 complete" in ran.out
    table = pandas.read_csv(tmp_path / "runs" / "smoke" / "trials.csv")
    assert sorted(table[table.role == "trial"].eps) == [1.0, 1.5, 4.0]
