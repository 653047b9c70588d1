"""`python -m gradcam_lib` is the command line; so is `torchrun … -m gradcam_lib`, on many devices."""

import sys

from .cli import main

sys.exit(main())
