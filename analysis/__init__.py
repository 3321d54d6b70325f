"""Read result files of hpcstress: frame -> statistics -> verdict -> figures -> report. Needs no MPI and no MLflow."""
