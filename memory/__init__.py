"""What outlives a run: the store of trajectories, the embedder that finds them again, and the images."""
