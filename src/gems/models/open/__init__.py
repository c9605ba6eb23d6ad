"""The open models: embedded models that draw and see almost any simple scene."""
