"""The TinyTL transform (Cai et al., NeurIPS 2020) of a network graph, a pass a file."""
