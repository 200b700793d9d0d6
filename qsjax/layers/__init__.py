"""What the diffusion transformer and the text encoders share: stacks of equal blocks, and norms."""
