"""Tuning through a refresh and its sparse steps, against tuning step by step with dense attention."""
