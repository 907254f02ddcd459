"""What pyproject.toml asks for, with these extras, one a line: `python tools/requirements.py local dev`.

pip can install these while the Rust core, which installing the package itself would begin with, compiles.
"""

import sys
import tomllib

with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)["project"]
extras = project["optional-dependencies"]
print(*project["dependencies"], *(line for name in sys.argv[1:] for line in extras[name]), sep="\n")
