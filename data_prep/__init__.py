"""Text in, training tables out."""
