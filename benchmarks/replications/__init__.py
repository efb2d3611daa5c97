"""Small-scale replications of the claims of the papers behind our architectures; see docs/replications/README.md.

`python -m nlrl.benchmarks.replications ngpt diff hymba bimamba --out FOLDER --corpus FILE` makes the runs.
"""
