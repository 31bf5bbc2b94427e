"""`python -m launch` is `eyas`, for checkouts whose path a console script cannot carry."""

from launch.cli import app

app(prog_name="eyas")
