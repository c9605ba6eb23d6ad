"""Image generators that run diffusers pipelines in this process."""
