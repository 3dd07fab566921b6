"""`python -m serinus.cli`."""

import sys

from .main import main

sys.exit(main())
