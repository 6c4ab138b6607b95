"""The scripts that made the shipped weights; `python -m minicanvas.train --out DIR` runs them
all."""
