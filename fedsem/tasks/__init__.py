"""What receivers want: for each task a decoder, a loss, and metrics."""
