"""A file for each library that makes SAE checkpoints, and what their readers share."""
