"""One run on disk: its thread, checkpoints, record, report and replay."""
