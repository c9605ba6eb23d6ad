"""``python -m gems``."""

from gems.cli import app

app(prog_name="gems")
