"""How good is it? Any enhancers by any metrics on a set of pictures, with the statistics that a claim needs."""
