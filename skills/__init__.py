"""The skill library: advice on prompt writing that the planner can read, in the open Agent Skills format."""
