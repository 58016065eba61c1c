"""Attacks, as plug-ins: one class in one file each. A new file here is found by itself."""
