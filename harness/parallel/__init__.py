"""How the ranks divide the model: the device mesh and what is applied to the layers."""
