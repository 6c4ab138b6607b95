"""Every method with the settings among which one is searched."""
