"""``python -m gems``."""

from gems.cli.main import app

app(prog_name="gems")
