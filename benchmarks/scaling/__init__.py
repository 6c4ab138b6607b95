"""What benchmarks/scale.py measures: stores, tasks, and how a process is watched."""
