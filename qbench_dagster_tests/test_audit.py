"""`make audit`: what fails it, and what must not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

AUDIT = Path(__file__).parents[1] / ".ci" / "audit.py"

if not AUDIT.exists():
    pytest.skip("not in a checkout", allow_module_level=True)


def audit(tmp_path: Path, says: str, code: int = 0) -> tuple[int, str]:
    """Exit code and words, where pip-audit prints `says`."""
    program = tmp_path / "pip-audit"
    program.write_text(f"#!{sys.executable}\nimport sys\nsys.stdout.write({says!r})\nsys.exit({code})\n")
    program.chmod(0o755)
    done = subprocess.run(
        [sys.executable, AUDIT, program, "requirements.lock"], capture_output=True, text=True, check=False
    )
    assert not done.stderr
    return done.returncode, done.stdout


def found(*fixes: list[str]) -> str:
    vulnerable = {"name": "old", "version": "1.0", "vulns": [{"id": f"CVE-{n}", "fix_versions": fix}
                                                             for n, fix in enumerate(fixes)]}  # fmt: skip
    return json.dumps({"dependencies": [{"name": "good", "version": "2.0", "vulns": []}, vulnerable], "fixes": []})


def test_a_vulnerability_with_a_fix_fails(tmp_path: Path) -> None:
    code, told = audit(tmp_path, found([], ["1.1", "2.0"]), 1)
    assert code == 1
    assert "audit: old 1.0: CVE-1, fixed in 1.1, 2.0" in told
    assert "audit: old 1.0: CVE-0, no fix yet" in told


@pytest.mark.parametrize("fixes", [[], [[]]])
def test_nothing_that_could_be_done_passes(tmp_path: Path, fixes: list[list[str]]) -> None:
    code, told = audit(tmp_path, found(*fixes), len(fixes))
    assert code == 0
    assert "2 packages, 0 known vulnerabilities that have a fix" in told


def test_no_network_and_no_index_pass_and_say_so(tmp_path: Path) -> None:
    assert audit(tmp_path, "", 1) == (0, "audit: skipped, pip-audit said nothing\n")
    done = subprocess.run([sys.executable, AUDIT, tmp_path / "none", "x"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (
        0, "audit: skipped, pip-audit could not be installed: no index is reachable\n"
    )  # fmt: skip
