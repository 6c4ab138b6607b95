"""What commands share that is no option: tables and values as text, hints, prompts, stopping."""
