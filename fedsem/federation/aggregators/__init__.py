"""Aggregation rules that come with the federation; robust ones are defenses."""
