"""Measure whether a concept was unlearned, what was kept, and whether it withstands attack."""
