"""The model: what follows from its shape by arithmetic, how it is built, initialised, masked and scored."""
