"""The nodes, one file each. A factory takes the run's resources and returns the node's function."""
