"""The bundled tiny model: its captions, encoders and sizes, and the folder that ships; `training` is how it was made."""
