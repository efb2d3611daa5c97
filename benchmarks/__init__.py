"""Programs that measure: `nlrl bench NAME`, or `python benchmarks/NAME.py`. Their results are kept in `results/`."""
