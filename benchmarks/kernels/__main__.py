import sys

from nlrl.benchmarks.kernels.cli import main

sys.exit(main())
