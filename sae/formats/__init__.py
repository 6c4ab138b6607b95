"""SAE checkpoints of other libraries, in and out.

What a file says is honoured or refused by name (docs/saes.md).
"""
