"""The nodes, one file each. Each file has a factory that takes the run's resources and returns the node's function."""
