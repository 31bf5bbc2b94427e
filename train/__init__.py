"""Distilling a student: the recipe, the batches, the losses, the step and the loop."""
