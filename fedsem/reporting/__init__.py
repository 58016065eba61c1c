"""The table, and what is drawn from it: figures and the report."""
