"""A local HTTP server that speaks TestRail's API v2 as documented, serves an export's data, and fails on demand.

`with TestRailServer(TestRailData.of_export(path)) as server: server.url`. Its data may be changed at any time.
"""

from __future__ import annotations

from qbench_dagster_tests.testrail_server.data import TestRailData
from qbench_dagster_tests.testrail_server.refusals import KEY, USER
from qbench_dagster_tests.testrail_server.server import TestRailServer

__all__ = ["KEY", "USER", "TestRailData", "TestRailServer"]
