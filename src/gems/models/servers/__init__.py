"""Image generators and chat models behind HTTP."""
