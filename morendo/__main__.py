"""`python -m morendo` is the `morendo` command."""

import sys

from morendo.cli import main

sys.exit(main())
