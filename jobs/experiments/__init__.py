"""Many runs: sweeps, the paper's ablations over seeds, every evaluation of a checkpoint.

May import every room but `jobs.inference`, `jobs.corpus` and `jobs.benchmarks`.
"""
