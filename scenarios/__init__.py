"""The scenarios that come with fedsem."""
