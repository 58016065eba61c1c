"""Grids of evaluation points that yield rows of the table."""
