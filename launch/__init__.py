"""The `eyas` command (layer 3): from a recipe to a model folder with a scorecard."""
