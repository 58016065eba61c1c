"""Checks that say when a robustness figure cannot be trusted, one file for each family of them."""
