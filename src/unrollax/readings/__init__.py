"""What measurements say in plain words, with figures: one module for each family of results."""
