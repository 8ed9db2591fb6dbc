"""`python -m cinema_fast`, and so `torchrun -m cinema_fast`."""

import sys

from .cli import main

sys.exit(main())
