"""What theory predicts of measured features; it sees tensors and moments, never a network or a file."""
