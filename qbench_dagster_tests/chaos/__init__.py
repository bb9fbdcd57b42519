"""Breaks a sync in every way we know, and looks whether anything but time was lost.

    python -m qbench_dagster_tests.chaos --faults 200 --seed 729

`exports` makes the states a sync goes between, `site` the place it happens in, `proxy` and `warm` what stands before
PostgreSQL and what starts runs, `reader` who reads all the while. The faults are in the modules named …_faults, what
is done and asked at each is `trial`, many of them at once `lanes`.
"""
