"""`python -m fabook` runs the command `fabook`, found by its entry point, not by an import."""

import sys
from importlib.metadata import entry_points

(command,) = entry_points(group="console_scripts", name="fabook")
sys.exit(command.load()())
