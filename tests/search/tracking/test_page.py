"""What MLflow's UI is told of a study; that a browser shows it is tested in tests/search/tracking/test_ui.py."""

import json

from search.tracking import page
from tests.search.tracking.tracked import make_record

DRAWN = [
    make_record(stages=[1, 3], eps=[1.5, 0.5, 2.0], temperature=2.0).config,
    make_record(stages=[], eps=1.2, lr=1e-3).config,
]


def views(tags):
    return {key.removeprefix(page.VIEW): json.loads(text) for key, text in tags.items() if key.startswith(page.VIEW)}


def test_columns_are_what_is_searched_and_axes_are_numbers():
    assert page.searched_params(DRAWN) == ["eps", "stages", "temperature", "lr"]
    assert page.searched_numbers(DRAWN) == ["eps_logits", "temperature", "lr", "stage_count"]
    fixed = [make_record(eps=1.0).config, make_record(eps=1.2).config]
    assert page.searched_params(fixed) == ["eps"] and page.searched_numbers(fixed) == ["eps_logits"]
    assert "temperature" in page.searched_params([]) and page.searched_numbers([]) == []


def test_a_table_of_many_params_stays_readable():
    wide = {name: [1, 2] for name in ("lr", "weight_decay", "batch_size", "warmup_epochs", "drop_path", "smoothing")}
    wide |= {name: [0.5, 0.7] for name in ("temperature", "gt_loss_weight", "kd_loss_weight", "ofa_loss_weight", "eps")}
    base = make_record().config
    drawn = [base | {name: values[number] for name, values in wide.items()} for number in (0, 1)]
    tags = page.experiment_tags("s", {"val/top1": True}, drawn)
    assert len(page.searched_params(drawn)) == page.MOST_PARAMS
    assert max(map(len, tags.values())) <= 5000  # more, a store refuses


def test_views_are_ordered_by_the_best_of_the_first_objective():
    tags = page.experiment_tags("s", {"val/loss": False, "val/top1": True}, DRAWN, pair="a teaches b", finalists=1)
    found = views(tags)
    assert set(found) == {page.TRIALS, page.CHARTS, page.FINAL}
    trials = found[page.TRIALS]
    assert (trials["orderByKey"], trials["orderByAsc"]) == ("metrics.`best/val_loss`", True)
    assert trials["selectedColumns"] == [
        "tags.`state`", "metrics.`best/val_loss`", "metrics.`val/loss`", "metrics.`val/top1`",
        "metrics.`val/agreement`", "params.`eps`", "params.`stages`", "params.`temperature`", "params.`lr`",
    ]  # fmt: skip
    assert found[page.FINAL]["orderByKey"] == "metrics.`test/top1`" and not found[page.FINAL]["orderByAsc"]
    for key in found:
        assert f"#/experiments/{page.HERE}/runs?viewStateShareKey={key}&" in tags[page.NOTE]
    assert "a teaches b" in tags[page.NOTE] and "less is better" in tags[page.NOTE]


def test_views_that_would_be_empty_are_left_out():
    tags = page.experiment_tags("s", {"val/top1": True})
    assert set(views(tags)) == {page.TRIALS}
    assert "charts" not in tags[page.NOTE] and "the final]" not in tags[page.NOTE]


def test_the_parent_tells_the_verdict_and_what_may_be_done_next():
    (text,) = page.run_note("It is better.", "5", {"Export": "export.py --study s"}).values()
    assert "It is better." in text and "**trial 5**" in text and "\n\n    export.py --study s" in text
    (text,) = page.run_note("", None, {}).values()
    assert text.startswith("No trial completed")
