"""The experiments of the docs on the bundled tiny model: grids of rows, each measured once, and the tables made of them."""
