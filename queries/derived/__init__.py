"""Tables made from statistics by SQL and kept: sums and totals, statistics by feature."""
