"""What the sensor `index_after_loads` does about a run that has ended."""

from typing import Any

import dagster as dg

from qbench_dagster.automation import index_after_loads


def after_load(instance: dg.DagsterInstance, result: dg.ExecuteInProcessResult) -> dg.RunRequest | str:
    """The run it asks for, or why it asks for none."""
    (ended,) = [event for event in result.all_events if event.event_type == dg.DagsterEventType.RUN_SUCCESS]
    context = dg.build_run_status_sensor_context(
        sensor_name="index_after_loads", dagster_event=ended, dagster_instance=instance,
        dagster_run=result.dagster_run,
    )  # fmt: skip
    found: Any = index_after_loads(context)
    return str(found.skip_message) if isinstance(found, dg.SkipReason) else found
