"""Tests the engine under faults: a workload on real servers, faults, four witnesses, and a checker of what they saw."""
