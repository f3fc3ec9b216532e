"""The command behind `search/report.py`, and the function that a study calls at its end."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from search.ledger import Ledger
from search.paths import writable
from search.report_facts import Facts, read_facts, read_study
from search.resume import store_of
from search.storage import Storage
from search.terminal import noise_to, person_console
from search.tracking.credentials import shown
from search.tracking.mirror import Mirror
from search.tracking.store import first_line
from trainables.errors import InputError

if TYPE_CHECKING:
    import optuna

PAGE, TEXT = "report.html", "report.md"


def run_report(arguments) -> int:
    """Writes a study's report as the flags say; returns the exit code.

    Raises:
        InputError: there is no such study, it has no trials, its files are broken, or its folder cannot be written.
    """
    storage = Storage(arguments.storage)
    storage.bring(arguments.study)
    storage.check(write=True)
    console = person_console()
    with noise_to(Path(os.devnull)):
        facts, ledger, study = read_study(storage.root, arguments.study)
        if not writable(facts.folder):
            raise InputError(f"--storage: {facts.folder} cannot be written; give a folder that can")
        said = write(facts, ledger, study)
        storage.give(facts.folder / PAGE, facts.folder / TEXT)
        problem = _log(facts, store_of(facts.folder, arguments.tracking_uri))
    if problem:
        print(f"warning: the report is not in MLflow: {problem}", file=sys.stderr)
    console.print(said, markup=False)
    for name in (PAGE, TEXT):
        console.print(f"  {storage.shown(facts.folder / name)}", markup=False)
    return 0


def write_report(folder: Path, ledger: Ledger, study: "optuna.Study | None") -> list[Path]:
    """Writes `report.html` and `report.md` into a study's folder.

    Args:
        folder: the study's, with its `settings.yaml` and, where a trial completed, its `best.yaml`.
        ledger: its records.
        study: Optuna's; None where it is gone.

    Returns:
        The two files.

    Raises:
        InputError: a file of the study is broken.
    """
    write(read_facts(Path(folder), ledger), ledger, study)
    return [Path(folder) / PAGE, Path(folder) / TEXT]


def write(facts: Facts, ledger: Ledger, study: "optuna.Study | None") -> str:
    """Writes both files, each whole or not at all; returns the report's first sentence."""
    from search.optuna_study import own_study
    from search.report_page import to_html, to_markdown
    from search.report_sections import lead, sections, subtitle

    said, own = lead(facts, ledger), own_study(study) if study else None
    content = (facts.settings.name, subtitle(facts, ledger), said, sections(facts, ledger, own))
    for name, text in ((PAGE, to_html(*content)), (TEXT, to_markdown(*content))):
        partial = facts.folder / f"{name}.partial"
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, facts.folder / name)
    return said


def _log(facts: Facts, uri: str) -> str | None:
    """Puts both files into the study's parent run; returns why not, where that cannot be.

    The report stands in the folder either way, so nothing here is an error.
    """
    try:
        Mirror(uri, facts.folder).attach(facts.folder / name for name in (PAGE, TEXT))
    except InputError as error:
        return "; ".join(error.problems)
    except Exception as error:  # each store and driver has its own
        return f"{shown(uri)}: {first_line(error)}"
    return None
