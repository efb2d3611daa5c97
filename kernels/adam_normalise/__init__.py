"""One Adam step of a matrix of unit vectors that ends on the unit sphere."""
