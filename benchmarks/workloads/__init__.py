"""What is measured: one file per workload, each with a NAME and its `cases(scale)`."""
