"""``gems eval``: ways to make an image, measured against each other on a benchmark."""
