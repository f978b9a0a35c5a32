"""Training: losses, discriminators, data, the step of each method and the loop."""
