"""Load a pipeline: its parts, single files, what is put into it, and which weights it has."""
