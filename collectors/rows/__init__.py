"""What a running pipeline shows, as rows: captured, shaped, kept, written."""
