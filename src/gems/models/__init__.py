"""What the nodes call, by name: chat models and image generators, and the pocket models that come with the package."""
