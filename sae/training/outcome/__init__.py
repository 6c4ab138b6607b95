"""What a training leaves: an SAE that is measured, given a threshold if one is wanted,
committed."""
