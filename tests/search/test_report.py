"""The report as a user meets it: the command, its files, and what they say of studies that ended in all ways."""

import json
import math
import re
from html.parser import HTMLParser

import optuna
import pytest
from mlflow import MlflowClient

from search import report, report_figures
from search.ledger import Ledger
from search.optuna_study import FROM
from search.report_command import write_report
from search.tracking.mirror import Mirror
from search.tracking.study_run import StudyRun
from tests.search.report_studies import NAME, Made, mixed, rising

HEADINGS = [
    "Result", "Teacher", "Optimisation history", "Parallel coordinates", "Each parameter", "Importance",
    "Could early stopping have misled?", "Learning curves", "Timeline", "Cost", "How it ended", "To repeat it",
]  # fmt: skip

CLASSES = {
    "by_class": [99.0, 61.5, 98.0],
    "class_counts": {"train": [20, 5, 20], "holdout": [], "test": [40, 20, 40]},
}


def written(made):
    """Both files of a study's report."""
    paths = write_report(made.folder, Ledger(made.folder / "trials"), made.study)
    return [path.read_text() for path in paths]


def section(markdown, title):
    return markdown.split(f"## {title}\n")[1].split("\n## ")[0]


class Loads(HTMLParser):
    """Collects what a page would load, and its text outside of scripts and styles."""

    def __init__(self):
        super().__init__()
        self.found, self.text, self._within = [], "", None

    def handle_starttag(self, tag, attributes):
        self._within = tag
        self.found += [value for name, value in attributes if name in ("src", "srcset", "data", "poster", "action")]
        if tag == "link":
            self.found += [value for name, value in attributes if name == "href"]

    def handle_data(self, data):
        if self._within not in ("script", "style"):
            self.text += data
        elif self._within == "style":
            self.found += re.findall(r"@import|url\(", data)


def test_a_study_that_ended_in_all_ways(tmp_path):
    made = mixed(tmp_path)
    made.teacher(**CLASSES, class_names=["cat", "dog", "owl"])
    made.account()
    page, text = written(made)
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == HEADINGS
    loads = Loads()
    loads.feed(page)
    assert loads.found == [], "one page that loads nothing"
    assert "default-src 'none'" in page
    assert "The best trial (3) beats the student trained alone by 15.00 points and" in text
    assert "There was no final" in section(text, "Result")
    assert "97.50% top-1 on the holdout of 404 images" in section(text, "Teacher")
    assert section(text, "Teacher").split("\n| ")[3] == "dog | 61.5 | 5 | 20 |", "the weakest class first"
    ended = section(text, "How it ended")
    assert "Ended by: the time budget of 900 s." in ended
    assert "| trials | 5 | 1 | 2 | 0 |" in ended
    assert "| 6 | 2 | CUDA <b>out</b> of memory \\| really |" in ended
    assert "| 7 | 9 | val/top1 was not finite |" in ended
    assert "CUDA &lt;b&gt;out" in page and "CUDA <b>" not in page
    assert "2 further epochs" in section(text, "Cost")
    assert "--space spaces/vit_to_mlp.py --name mine --smoke --set 'eps=a b'" in section(text, "To repeat it")
    assert "of the 5 complete trials" in section(text, "Could early stopping have misled?")
    assert "| 0.00 |" not in section(text, "Optimisation history") and "| 3 | 80.00 |" in text


def test_each_session_is_told_with_its_command_and_its_notes(tmp_path):
    """An extended study was not started with the flags of its last session."""
    made = mixed(tmp_path)
    warm, narrowed = "warm start from a: 3 first guesses", "search.eps: 1..2 instead of 0.8..2.5; 3 of 6 trials keep it"
    first = {"started": 0.0, "command": "python run.py --name mine --trials 6", "notes": [warm, "x < y"]}
    second = {"started": 9e5, "command": "python run.py --name mine --resume --trials 8", "notes": [narrowed]}
    made.account(first, second)
    page, text = written(made)
    told = section(text, "To repeat it")
    assert [line for line in told.splitlines() if line.startswith("python")] == [first["command"], second["command"]]
    assert re.findall(r"^\*(.+)\*$", told, re.MULTILINE) == [warm, "x < y", narrowed]
    assert told.index("Session 1, 19") < told.index(warm) < told.index("Session 2, 19") < told.index(narrowed)
    assert "'eps=a b'" not in told, "no session had these flags"
    assert f"<code>{second['command']}</code>" in page and "<p class=note>x &lt; y</p>" in page

    made.account({}, second)  # begun before commands were kept
    told = section(written(made)[1], "To repeat it")
    assert "The flags of its sessions together" in told and "--name mine --smoke" in told
    assert "Session 1: its command was not kept." in told and second["command"] in told


def test_all_figures_are_drawn(tmp_path):
    """History, parallel coordinates, a slice a parameter, both importances, agreement, curves, timeline, the final."""
    made = mixed(tmp_path)
    made.final("3", [80.0, 81.0])
    made.final("kd", [74.0, 74.5])
    page, text = written(made)
    assert page.count('<figure class="chart">') == 1 + 1 + 3 + 2 + 1 + 1 + 1 + 1
    assert "could not be drawn" not in text
    assert "Left out, since only some trials have them: eps_stage1." in section(text, "Parallel coordinates")
    for name in ("PED-ANOVA", "fANOVA", "trial 3 (best)", "kd-seed2", '"kd 74.00"'):
        assert name in page, name


def test_of_thousands_of_trials_some_are_drawn_and_judged_evenly_chosen(tmp_path, monkeypatch):
    """A curve each would be too much for a browser, and fANOVA over all takes minutes."""
    made = Made(tmp_path)
    for value in (60.0, 61.0, 62.0, 63.0, 64.0, 90.0, 65.0, 66.0, 67.0, 68.0):
        made.trial(rising(value))
    whole = written(made)[1]
    assert "evenly chosen" not in whole and len(report_figures.curves(made.ledger).data) == 10
    monkeypatch.setattr(report_figures, "DRAWN_CURVES", 4)
    monkeypatch.setattr(report_figures, "JUDGED", 5)
    drawn = [trace.name for trace in report_figures.curves(made.ledger).data]
    assert drawn == ["trial 0", "trial 2", "trial 5 (best)", "trial 7"]
    given = []
    judge = optuna.importance.FanovaImportanceEvaluator
    evaluate = judge.evaluate
    monkeypatch.setattr(
        judge, "evaluate", lambda self, study, **more: given.append(study) or evaluate(self, study, **more)
    )
    text = written(made)[1]
    assert [[trial.value for trial in study.trials] for study in given] == [[60.0, 62.0, 64.0, 65.0, 67.0]]
    assert "Of 10 trials 4 are drawn, evenly chosen, and the best." in section(text, "Learning curves")
    assert "over the 10 complete trials (fANOVA, whose time grows with their square, over 5 of them" in text
    monkeypatch.setattr(report_figures, "DRAWN_CURVES", 3)  # the best is not among 0, 3 and 6
    assert "trial 5 (best)" in [trace.name for trace in report_figures.curves(made.ledger).data]


def test_every_baseline_is_drawn_however_many_there_are(tmp_path):
    made = Made(tmp_path, objectives=["top1", "min:training_time"])
    for value in (70.0, 75.0, 72.0):
        made.trial(rising(value), **{"time/trained_s": 100 - value})
    names = ["scratch", "kd", "dkd", "dist", "rkd", "crd"]
    for place, name in enumerate(names):
        made.baseline(name, rising(60.0 + place), **{"time/trained_s": 40.0})
    study, ledger = made.study, made.ledger
    for figure in (report_figures.history(study, ledger), *report_figures.slices(study, ledger)):
        assert [one.y0 for one in figure.layout.shapes] == [60.0, 61.0, 62.0, 63.0, 64.0, 65.0]
    for figure in (report_figures.curves(ledger), *report_figures.pareto(study, ledger)):
        assert [trace.name for trace in figure.data if trace.name in names] == names


def test_other_studies_trials_are_not_this_ones(tmp_path):
    """A warm start puts them into Optuna's study, before its own."""
    space = {"eps": optuna.distributions.FloatDistribution(0.8, 2.5)}
    prior = optuna.trial.create_trial(
        params={"eps": 1.2345678}, distributions=space, values=[99.125], user_attrs={FROM: "other/3"}
    )
    made = mixed(tmp_path, priors=[prior])
    page, text = written(made)
    assert "99.125" not in page and "1.2345678" not in page
    assert "| 3 | 80.00 |" in text and "could not be drawn" not in text


def test_the_final_speaks_first(tmp_path):
    made = mixed(tmp_path)
    made.final("3", [80.0, 81.0, 80.5], right=80)
    made.final("0", [70.0, None, 70.5], right=70)
    made.final("scratch", [60.0, 60.5, 61.0], right=60)
    _, text = written(made)
    lead = text.split("**")[1]
    assert lead.startswith("On the test split (100 images), over 3 seeds, trial 3 reaches test/top1 80.50 ± 0.50: ")
    assert "it is better than scratch by 20.00 points" in lead
    result = section(text, "Result")
    assert result.index("| 95% CI |") < result.index("*The column 95% CI is over the seeds alone: ")
    for path in made.folder.glob("trials/*-seed*/test.npz"):
        path.unlink()
    assert "The column 95% CI" not in written(made)[1], "without predictions both are over the seeds"
    assert "| trial 3 (best) | 3 |" in result and "| trial 0, 1 failed | 2 |" in result
    assert "the machine went away" in section(text, "How it ended")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "9 epochs, as in the search, with other seeds."),
        ({"stopping_schedule": "rung"}, "9 epochs, as many as in the search but on one schedule of the learning rate"),
        ({"stopping_schedule": "rung", "scheduler": "none"}, "9 epochs, as in the search, with other seeds."),
    ],
)
def test_how_the_finals_training_differs_from_the_searchs(tmp_path, fields, words):
    made = Made(tmp_path, **fields)
    made.trial(rising(70.0))
    made.final("0", [70.0])
    result = section(written(made)[1], "Result")
    assert words in result and "The column 95% CI" not in result, "one seed has no interval"


def test_two_objectives(tmp_path):
    made = Made(tmp_path, objectives=["top1", "min:training_time"])
    for value, epochs in ((70.0, 9), (75.0, 9), (72.0, 9), (80.0, 9)):
        made.trial(rising(value)[:epochs], **{"time/trained_s": 100 - value})
    made.trial(rising(90.0), **{"time/trained_s": 500.0})
    made.baseline("kd", rising(74.0), **{"time/trained_s": 40.0})
    page, text = written(made)
    front = section(text, "Pareto front")
    assert "2 of 5 complete trials are beaten by no other in all objectives:" in front
    assert [line.split(" | ")[:3] for line in front.splitlines()[-2:]] == [
        ["| 4", "90.00", "500"],
        ["| 3", "80.00", "20"],
    ]
    assert "on the front" in page and "could not be drawn" not in text


def test_only_pictures_that_are_there_are_linked(tmp_path):
    made = mixed(tmp_path, objectives=["top1", "min:training_time"])
    assert "](" not in written(made)[1]
    for name in ("history.png", "importance.png", "pareto.png"):
        (made.folder / name).touch()
    links = re.findall(r"\]\((.+)\)", written(made)[1])
    assert links == ["history.png", "pareto.png", "importance.png"]


def test_what_the_history_leaves_out(tmp_path):
    made = Made(tmp_path)
    for values in (rising(70.0), rising(72.0), [1.0], [*rising(50.0)[:-1], math.nan]):
        made.trial(values)
    budget = made.trial([])  # a budget ended it before its first epoch's end, so it has no value
    budget.finish(stopped="cut off")
    made.ledger.save(budget)
    left_out = "*1 stopped trial ended so far off that it is left out of the figure in report.html"
    assert f"{left_out}.*" in section(written(made)[1], "Optimisation history")
    (made.folder / "history.png").touch()
    made.trial([1.0])
    history = section(written(made)[1], "Optimisation history")
    assert "*2 stopped trials ended so far off that they are left out of" in history
    assert "report.html; in history.png they are on the axis.*" in history


@pytest.mark.parametrize(
    ("fields", "trials", "final", "said"),
    [
        ({"finalists": 0}, [70.0], [], "There was no final, so nothing here is from the test split or from more"),
        ({"finalists": 0}, [70.0], [], "than one seed (--set finalists=3 seeds=3 makes one)."),
        ({}, [math.nan], [], "There was no final, as no trial completed, so nothing here is from the test split"),
        ({}, [70.0], [], "There was no final, as the study ended before it, so nothing here"),
        ({}, [70.0], [None], "No trial's run of the final completed, so nothing here"),
    ],
)
def test_why_there_was_no_final(tmp_path, fields, trials, final, said):
    made = Made(tmp_path, **fields)
    for value in trials:
        made.trial(rising(value))
    made.final("0", final)
    text = written(made)[1]
    assert said in section(text, "Result")
    if not final and math.isnan(trials[0]):
        history = section(text, "Optimisation history")
        assert "*No trial completed, so there is nothing to draw.*" in history and "far off" not in history


def test_less_may_be_better(tmp_path):
    made = Made(tmp_path, objectives=["nll"])
    for value in (0.9, 0.5, 0.7, 0.8):
        made.trial([2.0] * 8 + [value])
    made.baseline("scratch", [2.0] * 8 + [0.5031])
    page, text = written(made)
    assert "| -0.0031 |" in section(text, "Result") and ">-0.0031</td>" in page
    made.baseline("scratch", [2.0] * 8 + [0.75])
    _, text = written(made)
    assert "**The best trial (1) beats the student trained alone by 0.25 of val/loss on the holdout; it was" in text
    assert section(text, "Optimisation history").split("\n| ")[3].startswith("1 | 0.5 |")


def test_a_study_in_which_all_failed(tmp_path):
    made = Made(tmp_path)
    for _ in range(3):
        made.trial([], error="out of memory")
    page, text = written(made)
    assert "**No trial completed, so there is nothing to compare.**" in text
    assert "could not be drawn" not in text
    for title in ("Optimisation history", "Parallel coordinates", "Each parameter", "Importance", "Learning curves"):
        body = section(text, title)
        assert "*No trial" in body or "*It takes" in body, title
    assert page.count('<figure class="chart">') == 1, "the timeline alone"


def test_teachers_of_older_studies_have_less_to_tell(tmp_path):
    made = Made(tmp_path)
    made.trial(rising(70.0))
    _, text = written(made)
    assert "The figures of vit_tiny_patch16_224 are not known" in section(text, "Teacher")
    made.teacher()
    _, text = written(made)
    assert "97.50%" in section(text, "Teacher") and "before the recall of each class was kept" in text
    (tmp_path / "teachers" / "fingerprint" / "teacher.json").unlink()
    (tmp_path / "teachers" / "fingerprint").rmdir()
    made.teacher(**CLASSES | {"by_class": [99.0, 61.5, None]})
    _, text = written(made)
    assert "| 1 | 61.5 | 5 | 20 |" in text and "by their place in the order of the classes" in text


def test_one_trial_with_one_parameter(tmp_path):
    made = Made(tmp_path, trials=1)
    made.trial(rising(70.0))
    _, text = written(made)
    assert "could not be drawn" not in text
    assert "1 complete trial cannot show" in section(text, "Could early stopping have misled?")
    assert "All 1 trials were made." in text


def test_an_older_study_with_less_in_it(tmp_path):
    """Without a journal, a start, metrics other than the objective, or fields that settings got later."""
    made = Made(tmp_path)
    record = made.trial(rising(70.0))
    record.history = [{"epoch": one["epoch"], "val/top1": one["val/top1"]} for one in record.history]
    made.ledger.save(record)
    kept = ("name", "space", "teacher", "student", "data", "epochs", "trials")
    lines = [line for line in (made.folder / "settings.yaml").read_text().splitlines() if line.split(":")[0] in kept]
    (made.folder / "settings.yaml").write_text("\n".join([*lines, "gone_since: 3"]))
    for name in ("started.json", "optuna.log"):
        (made.folder / name).unlink()
    text = run(tmp_path)
    assert "Optuna's journal of this study is gone" in section(text, "Timeline")
    assert "--name mine" in section(text, "To repeat it")


def run(storage, *more):
    assert report.main(["--study", NAME, "--storage", str(storage), *more]) == 0
    return (storage / NAME / "report.md").read_text()


def test_the_command_logs_to_the_studys_parent_run(tmp_path, capfd):
    mixed(tmp_path)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    StudyRun(tmp_path / NAME, NAME).begin({}, {}, {})
    mirror = Mirror(uri, tmp_path / NAME)
    mirror.reach()
    mirror.open()
    client = MlflowClient(uri)
    capfd.readouterr()
    run(tmp_path)
    out, err = capfd.readouterr()
    folder = tmp_path / NAME
    assert out.startswith("The best trial (3) beats") and err == ""
    assert out.splitlines()[1:] == [f"  {folder / 'report.html'}", f"  {folder / 'report.md'}"]
    names = {artifact.path for artifact in client.list_artifacts(mirror.parent_id)}
    assert names == {"report.html", "report.md"}


@pytest.mark.parametrize("uri", [None, "http://127.0.0.1:9", "sqlite:////nowhere/mlflow.db"])
def test_a_store_that_is_not_there_is_a_warning(tmp_path, capfd, uri):
    made = Made(tmp_path)
    made.trial(rising(70.0))
    text = run(tmp_path, *(["--tracking-uri", uri] if uri else []))
    assert "# mine" in text
    err = capfd.readouterr().err
    assert err.startswith("warning: the report is not in MLflow: ") and err.count("\n") == 1
    assert not (tmp_path / "mlflow.db").exists(), "looking makes nothing"


def test_bad_input_is_a_line(tmp_path, capfd):
    made = Made(tmp_path)

    def refused(study=NAME):
        assert report.main(["--study", study, "--storage", str(tmp_path)]) == 2
        err = capfd.readouterr().err
        assert err.startswith("error: --study: ") and err.count("\n") == 1, err
        return err

    assert f"there is no study 'other' in {tmp_path}; there are mine" in refused("other")
    assert not (tmp_path / "other").exists()
    assert "'mine' has no trials yet; run it first" in refused()
    made.trial(rising(70.0))
    settings = (made.folder / "settings.yaml").read_text()
    (made.folder / "settings.yaml").write_text(settings.replace("epochs: 9", "epochs: nine"))
    assert "settings.yaml: epochs: 'nine' must be a valid integer" in refused()
    (made.folder / "settings.yaml").write_text("epochs: [")
    assert "settings.yaml is broken" in refused()
    (made.folder / "settings.yaml").unlink()
    assert "settings.yaml is missing" in refused()
    (made.folder / "settings.yaml").write_text(settings)
    (made.folder / "trials" / "0" / "record.json").write_text(json.dumps({"trial_id": "0"}))
    assert "a record.json of 'mine' is broken" in refused()
    assert not (made.folder / "report.html").exists()
