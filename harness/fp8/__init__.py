"""Matrix products in FP8 with tensorwise scales: kernels that cast, products with their gradients, weights that are gathered in FP8."""
