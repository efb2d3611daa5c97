"""Mazes: walk to the goal, each step costs one. LMRL-Gym's layouts and rewards, generated mazes, or your own."""

from nlrl.envs.maze.rules import Maze
from nlrl.envs.maze.state import MazeState, Seen

__all__ = ["Maze", "MazeState", "Seen"]
