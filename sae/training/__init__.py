"""Train SAEs: the loop, its state, its losses and its measures."""
