"""What the look-up of known vulnerabilities says of what pip-audit says."""

import json
import runpy
from pathlib import Path

import pytest

judge = runpy.run_path(str(Path(__file__).parents[2] / ".ci" / "audit.py"))["judge"]
SOUND = {"name": "a", "version": "1", "vulns": []}
BAD = {
    "name": "b",
    "version": "2",
    "vulns": [{"id": "CVE-1", "fix_versions": ["3"]}, {"id": "CVE-2", "fix_versions": []}],
}
SKIPPED = {"name": "c", "skip_reason": "not found"}


@pytest.mark.parametrize(
    ("packages", "code", "lines"),
    [
        ([SOUND], 0, ["audit: 1 packages, no known vulnerability"]),
        ([SOUND, SKIPPED], 0, ["audit: 1 packages, no known vulnerability, 1 could not be looked up"]),
        ([SOUND, BAD, SKIPPED], 1, ["audit: b 2: CVE-1, fixed in 3", "audit: b 2: CVE-2, not fixed yet"]),
        (
            [SKIPPED, SKIPPED],
            3,
            ["audit: nothing was looked up: the index knows vulnerabilities of none of 2 packages"],
        ),
    ],
)
def test_an_answer_is_one_of_three_things(packages, code, lines):
    """Above all, no answer is not a clean bill."""
    assert judge(json.dumps({"dependencies": packages}), "") == (code, lines)


def test_no_answer_is_told_with_its_reason():
    code, [line] = judge("", "Traceback\nConnectionError: nobody answers\n\n")
    assert code == 3 and line == "audit: nothing was looked up (ConnectionError: nobody answers)"
