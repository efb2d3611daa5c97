"""NLRL: reinforcement learning in natural language, on games.

Importing this package is cheap on purpose: rooms (`nlrl.envs`, `nlrl.agents`, `nlrl.backbones`, ...) are imported
by those who need them, so that a command line or a test of the rules pays for neither torch nor ray.
"""

__version__ = "0.1.0"
