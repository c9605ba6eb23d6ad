"""Chat models, image generators and inspectors, by name; and the pocket models, which come with the package."""
