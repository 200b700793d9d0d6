"""How much each step's error has to do with the video at the end."""
