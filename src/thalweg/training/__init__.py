"""Training: what differs from inference, where nothing has to be kept for gradients."""
