"""Looks requirements.txt's packages up among the known vulnerabilities, which pip-audit asks PyPI for.

    python .ci/audit.py

Exit codes: 0 none is known, 1 one line for each that is, 3 nobody could be asked, so nothing is known.
"""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
UNKNOWN = 3


def judge(out: str, err: str) -> tuple[int, list[str]]:
    """The exit code and the lines that pip-audit's output comes to.

    A mirror of PyPI may have the packages and not their vulnerabilities: pip-audit then skips them all and ends as if
    there were none.
    """
    try:
        packages = json.loads(out)["dependencies"]
    except (ValueError, KeyError):
        why = next((line for line in reversed(err.splitlines()) if line.strip()), "no answer").strip()
        return UNKNOWN, [f"audit: nothing was looked up ({why[:200]})"]
    asked = [package for package in packages if "skip_reason" not in package]
    if not asked:
        return UNKNOWN, [
            f"audit: nothing was looked up: the index knows vulnerabilities of none of {len(packages)} packages"
        ]
    lines = [
        f"audit: {package['name']} {package['version']}: {vulnerability['id']}, "
        + (f"fixed in {', '.join(vulnerability['fix_versions'])}" if vulnerability["fix_versions"] else "not fixed yet")
        for package in asked
        for vulnerability in package["vulns"]
    ]
    skipped = f", {len(packages) - len(asked)} could not be looked up" if len(asked) < len(packages) else ""
    return bool(lines), lines or [f"audit: {len(asked)} packages, no known vulnerability{skipped}"]


def main() -> int:
    """Asks; returns the exit code."""
    words = ["-m", "pip_audit", "--require-hashes", "--disable-pip", "--progress-spinner", "off", "--format", "json"]
    ran = subprocess.run(
        [sys.executable, *words, "--requirement", str(ROOT / "requirements.txt")], capture_output=True, text=True
    )
    code, lines = judge(ran.stdout, ran.stderr)
    print("\n".join(lines))
    return code


if __name__ == "__main__":
    sys.exit(main())
