"""What a question reads: tables that are kept, made for it alone, or drawn at random."""
