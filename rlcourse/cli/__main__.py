"""`python -m rlcourse.cli`, and so `torchrun -m rlcourse.cli train ...`."""

import sys

from rlcourse.cli import main

sys.exit(main())
