"""What a measured collapse is good for: costs to train with, fewer layers, early exits, scores."""
