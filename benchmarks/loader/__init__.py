"""The data loader beside other loaders, on fast and on failing storage."""
