"""Files of any size through a bundle: in parts, which are there whole or not at all, on one machine or on many."""
