"""``python -m gems``, which imports from where ``gems`` does."""

import sys

if __name__ == "__main__":
    # Python has put the current folder before all packages: a file of somebody else in it could be named like a module.
    if not sys.flags.safe_path:
        del sys.path[0]

    from gems.cli.main import app

    app(prog_name="gems")
