"""Known vulnerabilities of the locked packages: `audit.py PIP_AUDIT REQUIREMENTS`. Fails for one that has a fix.

Where pip-audit could not be installed, or the database of vulnerabilities not be asked, it says so and passes: that is
no fault of the lock file.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

PATIENCE_S = 120


def main(program: str, requirements: str) -> int:
    """The exit code."""
    if not os.access(program, os.X_OK):
        return skipped("pip-audit could not be installed: no index is reachable")
    # osv.dev knows all that PyPI's own advisories know, and the lock file names every package: nothing is resolved.
    command = [program, "-r", requirements, "--no-deps", "--disable-pip", "--vulnerability-service", "osv",
               "--format", "json", "--progress-spinner", "off"]  # fmt: skip
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE_S)  # noqa: S603
        audited = json.loads(done.stdout)["dependencies"]
    except subprocess.TimeoutExpired:
        return skipped(f"no answer within {PATIENCE_S} s")
    except (ValueError, KeyError):
        return skipped((done.stderr.strip() or "pip-audit said nothing").splitlines()[-1])
    fixable = 0
    for package in audited:
        for found in package.get("vulns", ()):
            fixes = ", ".join(found["fix_versions"])
            fixable += bool(fixes)
            told = f"fixed in {fixes}" if fixes else "no fix yet"
            sys.stdout.write(f"audit: {package['name']} {package['version']}: {found['id']}, {told}\n")
    sys.stdout.write(f"audit: {len(audited)} packages, {fixable} known vulnerabilities that have a fix\n")
    return 1 if fixable else 0


def skipped(why: str) -> int:
    """Said, and passed."""
    sys.stdout.write(f"audit: skipped, {why}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
