# SPDX-License-Identifier: Apache-2.0
"""`python -m evergemm`: the command line. Must not go here: commands (cli/ has them)."""

import sys

from .cli import main

sys.exit(main())
