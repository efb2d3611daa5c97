"""`streamlit run viewer.py -- RUNS`."""

import sys
from pathlib import Path

from nlrl.ui.app import main

main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs"))
