"""How the bundled tiny model was made: procedural clips, training, the bundle."""
