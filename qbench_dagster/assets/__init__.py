"""The assets, one module a stage, in the order they run: read, call core and adapters, write, report."""
