"""`testrail_mirror`: TestRail itself as the source, pulled over its API into a file like an export."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg
from pydantic import Field

from qbench_dagster.adapters.testrail_api import TestRailError
from qbench_dagster.adapters.testrail_pull import pull
from qbench_dagster.adapters.testrail_work import MirrorError
from qbench_dagster.assets.stage import ended_by
from qbench_dagster.progress import Progress
from qbench_dagster.resources import TestRailResource

UNUSED = "QBENCH_TESTRAIL_URL is not set: the source is an export"


class TestRailMirrorConfig(dg.Config):
    """What a person may decide for one pull."""

    __test__ = False

    full: bool = Field(False, description="Ask for every case, not only for those updated since the last pull.")


@dg.asset(
    group_name="source",
    kinds={"python", "sqlite"},
    check_specs=[
        dg.AssetCheckSpec(
            "every_project_is_readable",
            asset="testrail_mirror",
            description="The user may read every project; of others the mirror keeps what it had, and is not brought "
            "up to date.",
        )
    ],
)
def testrail_mirror(
    context: dg.AssetExecutionContext,
    config: TestRailMirrorConfig,
    testrail: TestRailResource,
    progress: dg.ResourceParam[Progress],
) -> dg.MaterializeResult:
    """TestRail's cases, suites, sections and look-up tables, as a SQLite file in the export's schema.

    Only needed with QBENCH_TESTRAIL_URL. Asks for what changed since the last pull; readers see the file as a whole
    pull left it, and a pull that was killed goes on where it was.
    """
    started = time.monotonic()
    if not testrail.is_used:
        return _result("none", [], {"summary": UNUSED, "requests": 0, "seconds": 0.0})
    with (
        ended_by(TestRailError, MirrorError),
        testrail.open() as api,
        progress.track(context, "TestRail cases", None) as advance,
    ):
        pulled = pull(
            api,
            testrail.mirror,
            projects=testrail.projects,
            full=config.full,
            overlap_s=testrail.overlap_s,
            progress=advance,
        )
    metadata = {
        **pulled.counts(),
        "source": api.url,
        "mirror": str(testrail.mirror),
        "seconds": round(time.monotonic() - started, 3),
    }
    # A pull that brought nothing new leaves what is downstream up to date.
    return _result(str(pulled.version), pulled.no_access, metadata)


def _result(version: str, no_access: Sequence[int], metadata: Mapping[str, Any]) -> dg.MaterializeResult:
    named = ", ".join(map(str, no_access))
    told = f"Projects the user may not read: {named}. Give it a role that may, or set QBENCH_TESTRAIL_PROJECTS."
    return dg.MaterializeResult(
        metadata=metadata,
        data_version=dg.DataVersion(version),
        check_results=[
            dg.AssetCheckResult(
                check_name="every_project_is_readable",
                passed=not no_access,
                severity=dg.AssetCheckSeverity.WARN,
                description=told if no_access else None,
                metadata={"projects": list(no_access)},
            )
        ],
    )
