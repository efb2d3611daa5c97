import sys

from nlrl.benchmarks.models.cli import main

if __name__ == "__main__":
    sys.exit(main())
