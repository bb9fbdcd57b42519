"""Case ranges as Dagster keeps them."""

from __future__ import annotations

import dagster as dg

from qbench_dagster.partitions import RANGE_END, RANGE_START, range_tags


def test_a_range_follows_the_order_its_keys_were_made_in() -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        assert range_tags(instance, {"from_0000000001"}) == {}
        instance.add_dynamic_partitions("case_ranges", ["from_0000000005", "from_0000000001", "from_0000000009"])
        made = {RANGE_START: "from_0000000005", RANGE_END: "from_0000000001"}
        assert range_tags(instance, {"from_0000000001", "from_0000000005", "never_made"}) == made
        assert range_tags(instance, set()) == {}
