"""Image generators that are diffusers pipelines in this process."""
