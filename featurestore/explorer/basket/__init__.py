"""Features that were chosen: as selections, as commands, and as pictures that are drawn without
them."""
