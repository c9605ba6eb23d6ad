"""The pocket models: a small generator, a vision model and a chat model that run offline on a CPU."""
