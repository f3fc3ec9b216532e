"""What a cluster description says, and what is wrong with it, without asking any cloud."""
