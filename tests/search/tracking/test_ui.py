"""MLflow's UI in a browser, on a server that holds a real study: what its pages show of it."""

import json
import os
from types import SimpleNamespace

import pytest

from search.ledger import Ledger
from search.tracking import page
from search.tracking.store import connect
from tests.search import studies
from tests.search.studies import wait_for
from tests.search.tracking.browsers import chromium
from tests.search.tracking.servers import over_sqlite

pytestmark = pytest.mark.long
LIMIT_S = 120
TRIALS = 8
MACHINE_LEARNING = "workflowType=machine_learning"  # else the UI opens on its pages for language models
PLOTS = """return [...document.querySelectorAll('.js-plotly-plot')].filter(one => one.data).flatMap(one => one.data.map(
    ({type, x, y, z, dimensions}) => ({
        type, x: x && [...x], y: y && [...y], z: z && [...z], drawn: one.querySelectorAll('svg, canvas').length,
        axes: (dimensions || []).map(({label, values}) => ({label, values: [...values]})),
    })))"""


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    os.environ["OFAKD_TEST"] = str(folder)
    with over_sqlite(folder) as (uri, start):
        start()
        options = ["--concurrency", "1", "--epochs", "9", "--trials", str(TRIALS), "--tracking-uri", uri]
        options += ["--set", "simulate=synthetic", "finalists=1", "seeds=2", "grace_epochs=3"]
        ran = studies.run("--space", studies.MAIN_SPACE, "--name", "pages", *options, cwd=folder)
        assert ran.code == 0, ran.err + ran.out
        records = Ledger(folder / "runs" / "pages" / "trials").records
        client = connect(uri)
        number = client.get_experiment_by_name("pages").experiment_id
        parent = client.search_runs([number], "tags.role = 'study'")[0]
        tags = client.get_experiment(number).tags
        views = {key.removeprefix(page.VIEW): json.loads(tags[key]) for key in tags if key.startswith(page.VIEW)}
        home = f"{uri}/#/experiments/{number}"
        yield SimpleNamespace(home=home, parent=parent, records=records, views=views)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with chromium(tmp_path_factory.mktemp("profile")) as found:
        yield found


def go(browser, address):
    browser.get("about:blank")  # a change behind the # alone would load nothing
    browser.get(address)


def texts(browser, selector):
    """Those of all elements, read in one go: the UI replaces elements under one's hands."""
    return browser.execute_script(
        "return [...document.querySelectorAll(arguments[0])].map(one => one.textContent)", selector
    )


def click(browser, selector):
    def clicked():
        from selenium.common.exceptions import WebDriverException

        try:
            browser.find_element("css selector", selector).click()
        except WebDriverException:  # not there yet, replaced, or under something that moves away
            return False
        return True

    wait_for(clicked, f"a click on {selector}", LIMIT_S)


def shown(browser, condition, what):
    return wait_for(condition, f"{what} at {browser.current_url}", LIMIT_S)


def rows(browser):
    """The names in the table of runs, from top to bottom."""
    return browser.execute_script(
        """return [...document.querySelectorAll('.ag-pinned-left-cols-container .ag-row')]
        .sort((one, other) => one.getAttribute('row-index') - other.getAttribute('row-index'))
        .map(one => one.querySelector('[col-id="attributes.`Run Name`"] a')?.textContent)"""
    )


def columns(browser):
    """The columns of the table of runs, from left to right."""
    return browser.execute_script(
        """return [...document.querySelectorAll('.ag-header-cell[col-id*="."]')]
        .sort((one, other) => one.getBoundingClientRect().left - other.getBoundingClientRect().left)
        .map(one => one.getAttribute('col-id'))"""
    )


def name_of(record):
    return f"{record.role} {record.trial_id}"


def follow(browser, study, key):
    """Opens a view by its link in the description."""
    go(browser, f"{study.home}?{MACHINE_LEARNING}")
    link = f'a[href*="viewStateShareKey={key}"]'
    shown(browser, lambda: texts(browser, link), f"the description's link to {key}")
    go(browser, browser.find_element("css selector", link).get_property("href"))


def test_the_experiment_opens_with_its_description_and_the_runs_nest(browser, study):
    go(browser, f"{study.home}?{MACHINE_LEARNING}")
    shown(browser, lambda: rows(browser) == ["pages"], "the parent run alone")
    shown(browser, lambda: "To compare" in "".join(texts(browser, "strong")), "the description as Markdown")
    click(browser, f'.ag-row[row-id="{study.parent.info.run_id}"] [col-id="attributes.`Run Name`"] button')
    every = {"pages", *map(name_of, study.records.values())}
    shown(browser, lambda: set(rows(browser)) == every, "all runs under their parent")


def test_the_view_of_trials_has_our_columns_and_the_best_first(browser, study):
    follow(browser, study, page.TRIALS)
    ours = study.views[page.TRIALS]["selectedColumns"]
    assert {"tags.`state`", "metrics.`best/val_top1`", "params.`eps`", "params.`stages`"} <= set(ours)
    shown(browser, lambda: columns(browser) == ["attributes.`Run Name`", *ours], "our columns in our order")
    here = [record for record in study.records.values() if record.role in ("trial", "baseline")]
    bests = {name_of(record): record.best for record in here}
    shown(browser, lambda: set(rows(browser)) == bests.keys(), "trials and baselines")
    order = [bests[name] for name in rows(browser)]
    assert order == sorted(order, reverse=True)
    assert set(texts(browser, '.ag-row [col-id="tags.`state`"]')) == {record.state for record in here}


def test_the_view_of_the_final_has_what_the_test_split_says(browser, study):
    follow(browser, study, page.FINAL)
    finalists = {name_of(record) for record in study.records.values() if record.role == "finalist"}
    shown(browser, lambda: set(rows(browser)) == finalists, "the finalists")
    tested = {name_of(record): record.metric("test/top1") for record in study.records.values()}
    order = [tested[name] for name in rows(browser)]
    assert order == sorted(order, reverse=True)
    assert len(texts(browser, '.ag-row [col-id="metrics.`test/top1`"]')) == len(finalists)


def test_the_charts_draw_every_trial(browser, study):
    follow(browser, study, page.CHARTS)
    shown(browser, lambda: "contour" in {one["type"] for one in browser.execute_script(PLOTS)}, "the contour plot")
    shown(browser, lambda: texts(browser, ".parcoords canvas"), "the parallel coordinates")
    heads = shown(browser, lambda: texts(browser, ".parcoords .dimension .label"), "their axes")
    assert heads == [*study.views[page.CHARTS]["compareRunCharts"][0]["selectedParams"], "best/val_top1"]
    (contour,) = (one for one in browser.execute_script(PLOTS) if one["type"] == "contour")
    assert len(contour["x"]) == len(contour["y"]) == len(contour["z"]) == TRIALS


def choose(browser, axis, key):
    """One of the compare page's axes, among its params and metrics."""
    click(browser, f'[role="tabpanel"][data-state="active"] [id="{axis}-selector"]')
    shown(browser, lambda: texts(browser, '[role="option"]'), "the choices")
    options = browser.find_elements("css selector", '[role="option"]')
    next(one for one in options if one.text == key).click()


def test_comparing_all_trials_draws_what_the_description_says(browser, study):
    follow(browser, study, page.TRIALS)
    shown(browser, lambda: len(rows(browser)) == TRIALS + 2, "trials and baselines")
    click(browser, '.ag-header-cell .ag-checkbox-input-wrapper:has([aria-label="Select all runs"])')
    click(browser, '[data-testid="runs-compare-button"]')

    def plot(kind):
        def there():
            return [one for one in browser.execute_script(PLOTS) if one["type"] == kind and one["drawn"]]

        return shown(browser, there, f"the {kind} plot")[0]

    axes = plot("parcoords")["axes"]
    assert [one["label"] for one in axes] == ["distiller", "eps", "eps_logits", "best/val_top1"]
    assert all(len(one["values"]) == TRIALS + 2 and None not in one["values"] for one in axes)
    bests = sorted(record.best for record in study.records.values() if record.role in ("trial", "baseline"))
    assert sorted(axes[-1]["values"]) == pytest.approx(bests)

    click(browser, '[role="tab"][id$="scatter-plot"]')
    choose(browser, "x-axis", "eps_logits")
    shown(browser, lambda: len(set(plot("scattergl")["x"])) > 2, "eps on the X axis")
    assert sorted(map(float, plot("scattergl")["y"])) == pytest.approx(bests)

    click(browser, '[role="tab"][id$="contour-plot"]')
    for axis, key in {"xaxis": "eps_logits", "yaxis": "temperature", "zaxis": "best/val_top1"}.items():
        choose(browser, axis, key)
    contour = plot("contour")
    assert sorted(contour["z"]) == pytest.approx(bests) and len(set(contour["y"])) > 2


def test_the_parent_shows_its_verdict_and_its_plot(browser, study):
    run = f"{study.home}/runs/{study.parent.info.run_id}"
    go(browser, f"{run}?{MACHINE_LEARNING}")
    note = '[data-testid="note-view-outer-container"]'
    shown(browser, lambda: study.parent.data.tags["verdict"] in "".join(texts(browser, note)), "the verdict")
    go(browser, f"{run}/artifacts/history.png?{MACHINE_LEARNING}")
    width = "return Math.max(0, ...[...document.querySelectorAll('img[src^=blob]')].map(one => one.naturalWidth))"
    shown(browser, lambda: browser.execute_script(width) > 300, "history.png")
