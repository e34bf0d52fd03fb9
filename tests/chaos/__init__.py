"""The proof: a workload over real servers, faults, four witnesses, and a checker that names what went wrong."""
