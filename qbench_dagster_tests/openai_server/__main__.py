"""`python -m qbench_dagster_tests.openai_server`: the server as a process of its own."""

from __future__ import annotations

from qbench_dagster_tests.openai_server.process import main

if __name__ == "__main__":
    main()
