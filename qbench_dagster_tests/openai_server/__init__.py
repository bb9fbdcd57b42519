"""A local HTTP server that speaks OpenAI's embeddings, files and batches endpoints, and fails on demand.

Three ways to run it: `with OpenAIServer() as server: server.base_url` (threads of the test's process),
`with served("--latency", "0.2") as control: control.base_url` (a process of its own, no shared GIL), or
`python -m qbench_dagster_tests.openai_server`. Any number of client processes may use one server.
"""

from __future__ import annotations

from qbench_dagster_tests.openai_server.batch_lines import BatchRules
from qbench_dagster_tests.openai_server.batches import BatchOutcome
from qbench_dagster_tests.openai_server.faults import FAULTS, VECTOR_FAULTS, Fault
from qbench_dagster_tests.openai_server.process import Control, served
from qbench_dagster_tests.openai_server.server import OpenAIServer
from qbench_dagster_tests.openai_server.vectors import count_words, vector_of, vectors_of

__all__ = [
    "FAULTS",
    "VECTOR_FAULTS",
    "BatchOutcome",
    "BatchRules",
    "Control",
    "Fault",
    "OpenAIServer",
    "count_words",
    "served",
    "vector_of",
    "vectors_of",
]
