"""The parts of `make bench-search`: what is searched (corpus), by whom (engines), how it is timed, what is told."""
