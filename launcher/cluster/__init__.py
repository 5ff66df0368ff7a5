"""The cluster that a run finds or starts: connecting, nodes, placement, the worker group."""
