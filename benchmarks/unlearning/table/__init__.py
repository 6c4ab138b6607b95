"""The table of ``docs/results.md``: what its cells share, each cell, attacks, the page."""
