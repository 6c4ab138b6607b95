"""Read a call of a pipeline: whose samples it holds, at which step, and how their tokens lie."""
