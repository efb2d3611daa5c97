"""The viewer's pages: each has `show(folder)`, which draws it for a folder of runs."""
