"""`normalized_testdocs`: each landed case as a TestDoc with its steps, or as a reject with a typed reason."""

from collections import Counter

import dagster as dg

from qbench_dagster.adapters.publishing import column_types
from qbench_dagster.adapters.staging import load_lookups, ranges_due, stage_cases, staged_counts
from qbench_dagster.assets.lineage import column_schema, staged_lineage
from qbench_dagster.assets.sqlite_cases import sqlite_cases
from qbench_dagster.assets.stage import PARTITIONED, Stage, check
from qbench_dagster.progress import Progress
from qbench_dagster.resources import PostgresResource


@dg.asset(
    **PARTITIONED,
    deps=[sqlite_cases],
    group_name="source",
    kinds={"python", "postgres"},
    metadata={"dagster/table_name": "staging.test_documents"},
    check_specs=[
        dg.AssetCheckSpec(
            "every_landed_case_is_staged_or_rejected",
            asset="normalized_testdocs",
            blocking=True,
            description="Landed cases = TestDocs + rejects, in every partition.",
        )
    ],
)
def normalized_testdocs(
    context: dg.AssetExecutionContext, postgres: PostgresResource, progress: dg.ResourceParam[Progress]
) -> dg.MaterializeResult:
    """TestDocs: the three step fields merged without losing a word, names looked up, references collected.

    A case is normalised again when its row, the names it refers to, or the normaliser changed. Rejects are
    replayed the same way.
    """
    stage = Stage(context)
    reasons: Counter[str] = Counter()
    notes: Counter[str] = Counter()
    samples: list[tuple[int, str, str]] = []
    lookups = load_lookups(postgres.database)
    with progress.track(context, "normalized_testdocs", None) as advance:
        for case_range in stage.due(ranges_due(postgres.database, stage.ranges)):
            staged = stage_cases(postgres.database, lookups, case_range, advance)
            stage.done(case_range, staged.normalized, staged.counts())
            reasons += staged.rejected
            notes += staged.notes
            samples += staged.reject_samples[: 5 - len(samples)]
    held = staged_counts(postgres.database, stage.ranges)
    wrong = {
        key: f"{count['landed']} landed, {count['documents']} staged, {count['rejects']} rejected"
        for key, count in held.items()
        if count["landed"] != count["documents"] + count["rejects"]
    }
    stage.holds(sum(count["documents"] for count in held.values()))
    columns = column_types(postgres.database, "staging", "test_documents")
    return stage.result(
        [check("every_landed_case_is_staged_or_rejected", wrong)],
        per_second="normalized",
        metadata={
            "dagster/column_schema": column_schema(columns),
            "dagster/column_lineage": staged_lineage(columns),
            "rejects_by_reason": dict(reasons),
            "notes_by_field": dict(notes.most_common(20)),
            "reject_samples": [{"case_id": case, "reason": why, "detail": what} for case, why, what in samples],
        },
    )
