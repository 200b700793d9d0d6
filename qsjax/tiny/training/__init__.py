"""How the bundled model was made: its latent space, its two trainings, and the distillation of guidance."""
